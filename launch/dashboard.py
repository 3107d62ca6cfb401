"""The W&B dashboard of one's runs: sweep, training, towers, exchange, pictures, and the differences of 2012.

python launch/dashboard.py [project=NAME] [entity=NAME] [group=SWEEP] [network=NAME] [push=true]
"""

from twotower.command_line.command import command
from twotower.config import DashboardConfig
from twotower.reports.dashboard import build, describe, push, validate


@command("dashboard")
def main(settings: DashboardConfig) -> None:
    workspace = build(settings)
    validate(workspace)
    print("\n".join(describe(workspace)))
    if settings.push:
        print(f"saved: {push(workspace)}")
    else:
        print("valid, not saved; push=true sends it to W&B")


if __name__ == "__main__":
    main()

"""The key to W&B's server, which only logging.wandb=online needs: checked before any work begins."""


def check_key() -> None:
    """Checks that W&B finds a key: in WANDB_API_KEY, an identity token, .netrc or its settings. Asks no server.

    Raises: ValueError if there is none, or one that cannot be a key.
    """
    import wandb  # imported here, because it takes a second, which runs without W&B save
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    host = wandb_setup.singleton().settings.base_url
    try:
        key = wbauth.authenticate_session(host=host, source="twotower", prompt=False, update_session=False)
    except (wandb.errors.Error, ValueError) as error:
        raise ValueError(f"logging.wandb=online cannot use the key that it found ({error}); {_remedy()}") from error
    if key is None:
        raise ValueError(
            f"logging.wandb=online (or WANDB_MODE=online) needs a key for {host}, and there is none in "
            f"WANDB_API_KEY, .netrc or W&B's settings; {_remedy()}"
        )


def _remedy() -> str:
    return "log in by `wandb login`, or take logging.wandb=offline and send the run later by `wandb sync`."


def unreachable(error: Exception) -> ValueError:
    """The error for a run that W&B did not open."""
    return ValueError(f"logging.wandb=online did not reach W&B ({error}); {_remedy()}")

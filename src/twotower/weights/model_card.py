"""The texts that lie beside a network in a folder for Hugging Face's hub: config.json, and README.md, its model card.

Both follow from the metadata of the file of weights, and say nothing that is not in it.
"""

import json
from collections.abc import Mapping
from typing import Any

import yaml

MODEL_TYPE = "twotower"
LIMITS = """\
- It tells apart the classes it was trained on, in images like those of its data set; of anything else it says one of
  these classes as well.
- The errors are those of one run with one seed. Their intervals are of 95 % and come from the number of validation
  images alone; other seeds differ by more.
- The licence is that of twotower and its files; the data set has terms of its own.
- The data set was not examined for bias, and the network was not made for decisions about people.
"""


def write_config(about: Mapping[str, str]) -> str:
    """config.json of a file's metadata. `sha256` ties it to the tensors."""
    content = {
        "model_type": MODEL_TYPE,
        "architectures": ["TrainedNetwork"],
        "network": json.loads(about["network"]),
        "classes": json.loads(about["classes"]),
        "mean_use": about["mean_use"],
        "torch_dtype": about["dtype"],
        "seed": int(about["seed"]),
        "step": int(about["step"]),
        "sha256": about["sha256"],
    }
    return json.dumps(content, indent=1) + "\n"


def _front_matter(about: Mapping[str, str], title: str) -> str:
    """The metadata by which the hub sorts and shows a network, as YAML."""
    errors, data = json.loads(about["errors"]), json.loads(about["data"])
    content: dict[str, Any] = {
        "library_name": "twotower",
        "license": "mit",
        "pipeline_tag": "image-classification",
        "tags": ["alexnet", "two-towers", "safetensors"],
    }
    if errors:
        metrics = [
            {"type": "accuracy", "name": f"top-{k} accuracy, %", "value": round(100 - errors[f"top{k}_error"], 2)}
            for k in (1, 5)
        ]
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": name_data(data), "type": name_data(data), "split": "validation"},
            "metrics": metrics,
        }
        content["model-index"] = [{"name": title, "results": [result]}]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def name_data(data: Mapping[str, Any]) -> str:
    """The source of a prepared set, else the kind of data: shapes, folder, synthetic."""
    return str(data["source"] or data["kind"])


def _describe_errors(errors: Mapping[str, float]) -> str:
    if not errors:
        return "No validation was done.\n"
    rows = [
        f"| top-{k} error | {errors[f'top{k}_error']:.2f} % | {errors[f'top{k}_error_low']:.2f} to "
        f"{errors[f'top{k}_error_high']:.2f} % |"
        for k in (1, 5)
    ]
    head = f"| {int(errors['num_images']):,} validation images, centre crop | | 95 % interval |\n|---|---|---|\n"
    return head + "\n".join([*rows, f"| loss | {errors['loss']:.4f} nats | |"]) + "\n"


def write_model_card(about: Mapping[str, str], title: str) -> str:
    """README.md of a file's metadata."""
    network, classes, data = (json.loads(about[key]) for key in ("network", "classes", "data"))
    towers = "two towers" if network["towers"] == 2 else "one tower"
    shown = ", ".join(classes) if len(classes) <= 20 else f"{', '.join(classes[:5])} ... {classes[-1]}"
    counts = [f"{data[key]:,} {what}" for key, what in (("num_train", "for training"), ("num_val", "for validation"))
              if data[key] is not None]  # fmt: skip
    size = network["image_size"]
    fingerprint = data["fingerprint"] or "not recorded, as the images were not looked at when the file was written"
    return f"""---
{_front_matter(about, title)}---

# {title}

The network `{network["name"]}` of twotower, a reproduction of AlexNet (2012): {towers}, {len(network["layers"])}
layers, width {network["width"]:g}, images of {size} x {size} pixels, {len(classes)} classes ({shown}).
Values are stored as {about["dtype"]}.

| | |
|---|---|
| data | {name_data(data)}{": " + " + ".join(counts) + " images" if counts else ""} |
| fingerprint of the data | `{fingerprint}` |
| seed | {about["seed"]} |
| step | {int(about["step"]):,} |
| commit of the training | `{about["commit"]}` |
| commit of this file's writing | `{json.loads(about["versions"])["commit"]}` |
| SHA-256 of the tensors | `{about["sha256"]}` |

{_describe_errors(json.loads(about["errors"]))}
## Use

```python
import twotower

network = twotower.load_network("FOLDER")  # or "hf:OWNER/NAME"
network.predict(["photograph.jpg"])
```

Loading checks the file: whether it computes, layer by layer and tower by tower, what it did when it was written.
`plain.py` beside it loads `model.safetensors` with torch and safetensors alone, and checks nothing.

## Limits

{LIMITS}"""

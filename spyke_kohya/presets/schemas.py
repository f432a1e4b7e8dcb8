"""JSON Schemas of both kinds of preset, made from the models and the option table, for editors.

They say what JSON Schema can: the models alone know, for example, that sd-scripts wants a decimal point.
"""

from __future__ import annotations

from typing import Any

from spyke_kohya.engine.options import RESERVED, Option, train_network_options
from spyke_kohya.presets.dataset import DatasetConfig
from spyke_kohya.presets.training import REQUIRED, TrainingPreset

Schema = dict[str, Any]
_DIALECT = "http://json-schema.org/draft-07/schema#"
_TYPES = {"str": "string", "Path": "string", "int": "integer", "float": "number", "int_or_float": "number"}


def dataset_schema() -> Schema:
    """What a dataset preset may hold."""
    return _finished(DatasetConfig.model_json_schema(), "spyke-kohya: a dataset preset (sd-scripts' dataset config)")


def training_schema() -> Schema:
    """What a training preset may hold, ``[train_network]`` included."""
    schema = TrainingPreset.model_json_schema()
    schema["properties"]["train_network"] |= {
        "type": "object",
        "additionalProperties": False,
        "required": sorted(REQUIRED),
        "properties": {
            name: _option_schema(option) for name, option in train_network_options().items() if name not in RESERVED
        },
    }
    return _finished(schema, "spyke-kohya: a training preset")


def _option_schema(option: Option) -> Schema:
    default = "off" if option.default is False else "not set" if option.default is None else option.default
    told = {"description": f"train_network.py --{option.dest}; default: {default}"}
    if option.is_switch:
        return {"type": "boolean", **told}
    one: Schema = {"type": _TYPES[option.type or "str"]}
    if option.choices:
        one["enum"] = [choice for choice in option.choices if choice is not None]
    if option.many:
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}], **told}
    return one | told


def _finished(schema: Schema, title: str) -> Schema:
    """Less what only JSON has: null; and any kind of dataset that fits, for an empty one fits both."""
    whole: Schema = _without_null(schema)
    return {"$schema": _DIALECT} | whole | {"title": title}


def _without_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_null(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {
        "anyOf" if key == "oneOf" else key: _without_null(item)
        for key, item in value.items()
        if not (key == "default" and item is None) and key != "discriminator"
    }
    forms = [form for form in kept.get("anyOf", []) if form != {"type": "null"}]
    if "anyOf" in kept and len(forms) == 1:
        del kept["anyOf"]
        return forms[0] | kept
    return kept | ({"anyOf": forms} if forms else {})

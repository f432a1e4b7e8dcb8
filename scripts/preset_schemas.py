"""JSON Schemas of both kinds of preset, made from the models and the option table, for editors.

They say what JSON Schema can: the models alone know, for example, that sd-scripts wants a decimal point.
"""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from spyke_kohya.engine.options import RESERVED, Option, train_network_options
from spyke_kohya.presets.dataset import DatasetConfig
from spyke_kohya.presets.training import REQUIRED, TrainingPreset

Schema = dict[str, Any]
_DIALECT = "http://json-schema.org/draft-07/schema#"
_TYPES = {"str": "string", "Path": "string", "int": "integer", "float": "number", "int_or_float": "number"}


class _Described(GenerateJsonSchema):
    """Fields with their docstrings as descriptions; Pydantic's own way reads the source at every import of a model."""

    def model_schema(self, schema: core_schema.ModelSchema) -> Schema:
        described = super().model_schema(schema)
        for name, text in _field_docs(schema["cls"]).items():
            if name in described.get("properties", {}):
                described["properties"][name] |= {"description": text}
        return described


def _field_docs(model: type[BaseModel]) -> dict[str, str]:
    """The string under each field of a model, by the field's name; the fields it inherits included."""
    docs: dict[str, str] = {}
    for kind in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        (body,) = ast.parse(inspect.getsource(kind)).body
        assert isinstance(body, ast.ClassDef)
        for field, doc in pairwise(body.body):
            match field, doc:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = inspect.cleandoc(text)
    return docs


def dataset_schema() -> Schema:
    """What a dataset preset may hold."""
    return _finished(
        DatasetConfig.model_json_schema(schema_generator=_Described),
        "spyke-kohya: a dataset preset (sd-scripts' dataset config)",
    )


def training_schema() -> Schema:
    """What a training preset may hold, ``[train_network]`` included."""
    schema = TrainingPreset.model_json_schema(schema_generator=_Described)
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

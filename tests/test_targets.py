"""The verdicts on options, target by target: each is seen to strike, and to spare what it should."""

from collections import Counter

import pytest

from spyke_kohya.engine.options import parser_defaults, train_network_options
from spyke_kohya.engine.targets import RULES, TARGET_ENVIRONMENT, rules_broken

CALM = {"sdpa": True, "max_data_loader_n_workers": 0, "optimizer_type": "AdamW"}
STRIKES = {
    "target.mixed-precision": [{"mixed_precision": "fp16"}, {"mixed_precision": "bf16"}],
    "target.full-precision": [{"full_fp16": True}, {"full_bf16": True, "mixed_precision": "fp16"}],
    "target.fp8": [{"fp8_base": True}, {"fp8_base_unet": True}],
    "target.xformers": [{"xformers": True}],
    "target.optimizer-8bit": [
        {"optimizer_type": "AdamW8bit"},
        {"optimizer_type": "PagedLion8bit"},
        {"optimizer_type": "pagedadamw"},
        {"optimizer_type": "bitsandbytes.optim.AdEMAMix"},
        {"use_8bit_adam": True},
    ],
    "target.optimizer-missing": [{"optimizer_type": "DAdaptAdam"}],
    "target.deepspeed": [{"deepspeed": True}],
    "target.validation": [{"validation_split": 0.1}],
    "target.cpu-offload-checkpointing": [{"cpu_offload_checkpointing": True}],
    "target.workers": [{"persistent_data_loader_workers": True, "max_data_loader_n_workers": 0}],
    "target.attention": [{"sdpa": False}],
    "target.dropout-checkpointing": [
        {"gradient_checkpointing": True, "network_dropout": 0.1},
        {"gradient_checkpointing": True, "network_args": ["rank_dropout=0.1"]},
    ],
    "target.torch-compile": [{"torch_compile": True}],
    "target.samples-reseed": [{"sample_prompts": "prompts.txt"}],
    "target.workers-default": [{"max_data_loader_n_workers": 8}],
    "target.scale-weight-norms": [{"scale_weight_norms": 1.0}],
    "target.lowram": [{"lowram": True}],
    "target.workers-not-persistent": [{"max_data_loader_n_workers": 1}],
    "target.memory-efficient-attention": [{"sdpa": False, "mem_eff_attn": True}],
    "target.batch-rows": [{"rows_a_batch": 9 * 4096}],
}


def broken(target: str, options: dict) -> list[str]:
    return [rule.code for rule in rules_broken(target, parser_defaults() | CALM | options)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_rule_strikes_on_its_targets_and_nowhere_else(rule):
    for options in STRIKES[rule.code]:
        for target in TARGET_ENVIRONMENT:
            assert (rule.code in broken(target, options)) == (target in rule.targets), (target, options)


@pytest.mark.parametrize("target", TARGET_ENVIRONMENT)
def test_calm_options_break_nothing(target):
    assert broken(target, {}) == []


def test_dropout_without_checkpointing_and_sharing_without_dropout_are_spared():
    assert broken("mps", {"network_dropout": 0.1}) == []
    assert broken("mps", {"gradient_checkpointing": True, "network_args": ["module_dropout=0.1"]}) == []
    assert broken("mps", {"gradient_checkpointing": True, "network_dropout": 0.0}) == []


def test_memory_efficient_attention_is_as_safe_as_sdpa():
    assert broken("mps", {"sdpa": False, "mem_eff_attn": True}) == ["target.memory-efficient-attention"]


def test_every_rule_names_an_option_of_the_engine_and_where_it_was_seen():
    for rule in RULES:
        assert rule.option in train_network_options()
        assert rule.source
        assert rule.remedy
        assert rule.targets
    assert max(Counter(rule.code for rule in RULES).values()) == 1


def test_only_a_mac_needs_the_fallback():
    assert TARGET_ENVIRONMENT == {"mps": {"PYTORCH_ENABLE_MPS_FALLBACK": "1"}, "cuda": {}, "cpu": {}}


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_workers_that_are_started_anew_are_slow_and_no_error(workers):
    """One worker was an error, and eight, which cost more, were a warning."""
    options = parser_defaults() | CALM | {"max_data_loader_n_workers": workers}
    (rule,) = [rule for rule in rules_broken("mps", options) if rule.code == "target.workers-not-persistent"]
    assert rule.severity == "warning"
    assert "more workers cost more" in rule.reason
    persistent = broken("mps", {"max_data_loader_n_workers": workers, "persistent_data_loader_workers": True})
    assert "target.workers-not-persistent" not in persistent

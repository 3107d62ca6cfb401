"""The update rule of section 5 against its formula in float64, over drops of the rate and freezes."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from helpers import oracle
from twotower.config import OptimConfig
from twotower.training.optim import VelocitySGD

SHAPES = {"conv1.weight": (4, 3, 2, 2), "conv1.bias": (4,), "fc6.weight_own": (5, 6), "fc6.bias": (5,)}
DROPS = [0.1] * 4 + [0.01] * 3 + [0.001] * 3
FREEZE = [0.1] * 3 + [0.0] * 2 + [0.01] * 3 + [0.0] * 2 + [0.01] * 2
RISE = [0.0] * 2 + [0.01] * 3 + [0.05] * 3


def start(dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}
    return {name: nn.Parameter(w.to(dtype)) for name, w in drawn.items()}


def request(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def rule_for(parameters: dict[str, nn.Parameter], bias_rate: float = 1.0, bias_decay: bool = True) -> VelocitySGD:
    optim = OptimConfig()
    return VelocitySGD(parameters, optim.momentum, optim.weight_decay, bias_rate, bias_decay)


def go(rule: VelocitySGD, rates: list[float], first_step: int = 0) -> None:
    for step, rate in enumerate(rates, first_step):
        rule.set_rate(rate)
        for name, g in request(step).items():
            rule.parameters[name].grad = g.to(rule.parameters[name].dtype)
        rule.step()
        assert all(p.grad is None for p in rule.parameters.values())


def literal(
    rates: list[float], bias_rate: float = 1.0, bias_decay: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and velocities by the formula."""
    weights = {name: p.detach() for name, p in start().items()}
    velocities = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step, rate in enumerate(rates):
        oracle.update(weights, velocities, request(step), rate, bias_rate, bias_decay)
    return weights, velocities


def values(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


@pytest.mark.parametrize("rates", [DROPS, FREEZE, RISE], ids=["drops", "freeze", "rise"])
@pytest.mark.parametrize(("bias_rate", "bias_decay"), [(1.0, True), (2.0, False), (2.0, True), (0.0, True)])
def test_rule_is_the_formula(rates, bias_rate, bias_decay):
    """Exposes a rate outside the velocity, a decay without rate, biases taken for weights, a freeze that coasts."""
    parameters = start()
    rule = rule_for(parameters, bias_rate, bias_decay)
    go(rule, rates)
    weights, velocities = literal(rates, bias_rate, bias_decay)
    assert oracle.deviation(values(parameters), weights) < 1e-13
    moved = {name: v for name, v in velocities.items() if v.any()}
    assert len(moved) == (2 if bias_rate == 0 else 4)
    assert oracle.deviation(rule.velocity(), moved) < 1e-12
    for wrong in (literal(rates, 1.5, bias_decay), literal(rates, bias_rate or 1.0, not bias_decay)):
        assert oracle.deviation(values(parameters), wrong[0]) > 1e-5


def test_rule_in_float32():
    """The same in float32; some 30 roundings of 6e-8 each remain below 1e-6."""
    parameters = start(torch.float32)
    rule = rule_for(parameters, 2.0, False)
    go(rule, DROPS)
    assert all(p.dtype == torch.float32 for p in parameters.values())
    assert oracle.deviation(values(parameters), literal(DROPS, 2.0, False)[0]) < 1e-6


def test_plain_sgd_is_rejected():
    """torch.optim.SGD is the same rule until the rate drops, and another one from then on."""
    for rates, same in (([0.1] * 6, True), (DROPS, False)):
        parameters = start()
        sgd = torch.optim.SGD(parameters.values(), lr=0.0, momentum=0.9, weight_decay=0.0005)
        for step, rate in enumerate(rates):
            for group in sgd.param_groups:
                group["lr"] = rate
            for name, g in request(step).items():
                parameters[name].grad = g
            sgd.step()
        off = oracle.deviation(values(parameters), literal(rates)[0])
        assert off < 1e-13 if same else off > 1e-2


def test_freezing_keeps_weights_and_velocity():
    """A rate of 0 must neither decay nor coast, and the velocity must be there when it ends."""
    parameters = start()
    rule = rule_for(parameters)
    go(rule, DROPS)
    weights, velocity = values(parameters), {name: v.clone() for name, v in rule.velocity().items()}
    go(rule, [0.0, 0.0], first_step=len(DROPS))
    assert all(torch.equal(p, weights[name]) for name, p in parameters.items())
    assert oracle.deviation(rule.velocity(), velocity) == 0
    # The next step without gradients coasts with 0.9 of it.
    rule.set_rate(1e-3)
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    rule.step()
    coasted = {name: p.detach() - weights[name] + 0.0005 * 1e-3 * weights[name] for name, p in parameters.items()}
    assert oracle.deviation(coasted, {name: 0.9 * v for name, v in velocity.items()}) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kept_at", [0, 4, 5, 9], ids=["start", "running", "frozen", "after_drop"])
def test_state_goes_on_bit_for_bit(dtype, kept_at):
    """A state that forgets the rate of its velocity, or rounds it, would not end at the same bits."""
    rates = [0.1] * 4 + [0.0] * 3 + [0.02] * 3 + [0.003] * 4
    parameters = start(dtype)
    rule = rule_for(parameters, 2.0, False)
    go(rule, rates[:kept_at])
    buffers, numbers = rule.state()
    buffers = {name: b.clone() for name, b in buffers.items()}
    weights = values(parameters)
    go(rule, rates[kept_at:], first_step=kept_at)

    again = {name: nn.Parameter(w.clone()) for name, w in weights.items()}
    resumed = rule_for(again, 2.0, False)
    resumed.load_state(buffers, numbers)
    assert resumed.state()[1] == numbers
    assert resumed.state()[0].keys() == buffers.keys()
    assert len(buffers) == (4 if kept_at else 0)
    go(resumed, rates[kept_at:], first_step=kept_at)
    for name in SHAPES:
        assert torch.equal(again[name], parameters[name])
        assert torch.equal(resumed.state()[0][name], rule.state()[0][name])
    assert resumed.state()[1] == rule.state()[1]


def test_loading_copies_the_state():
    """load_state must copy: two rules that share a buffer would move each other."""
    parameters = start()
    rule = rule_for(parameters)
    go(rule, DROPS[:3])
    buffers, numbers = rule.state()
    other = rule_for(start())
    other.load_state(buffers, numbers)
    before = {name: b.clone() for name, b in buffers.items()}
    go(other, [0.1, 0.01])
    assert all(torch.equal(buffers[name], before[name]) for name in SHAPES)


def test_each_layer_has_its_own_rates():
    """Against the formula, layer by layer: conv1 frozen, fc6 at another rate, biases at rates of their own."""
    weights_at = (
        [{"conv1": 0.1, "fc6": 0.02}] * 3 + [{"conv1": 0.0, "fc6": 0.02}] * 2 + [{"conv1": 0.01, "fc6": 0.1}] * 3
    )
    biases_at = [{"conv1": 0.2, "fc6": 0.2}] * 4 + [{"conv1": 0.0, "fc6": 0.01}] * 4
    parameters = start()
    rule = rule_for(parameters)
    expected = {name: p.detach().clone() for name, p in parameters.items()}
    velocities = {name: torch.zeros_like(w) for name, w in expected.items()}
    for step, (of_weights, of_biases) in enumerate(zip(weights_at, biases_at, strict=True)):
        rule.set_rates(of_weights, of_biases)
        for name, g in request(step).items():
            parameters[name].grad = g
            rate = (of_biases if name.endswith("bias") else of_weights)[name.split(".")[0]]
            if rate > 0:
                velocities[name] = 0.9 * velocities[name] - 0.0005 * rate * expected[name] - rate * g
                expected[name] = expected[name] + velocities[name]
        rule.step()
    assert oracle.deviation(values(parameters), expected) < 1e-13
    assert oracle.deviation(rule.velocity(), velocities) < 1e-12


def test_rule_torch_is_torchs_own():
    """optim.rule=torch is torch.optim.SGD bit for bit, and not the paper's rule once the rate has dropped."""
    optim = OptimConfig()
    ours, theirs = start(), start()
    rule = VelocitySGD(ours, optim.momentum, optim.weight_decay, 1.0, True, rule="torch")
    sgd = torch.optim.SGD(theirs.values(), lr=0.1, momentum=optim.momentum, weight_decay=optim.weight_decay)
    for step, rate in enumerate(DROPS):
        sgd.param_groups[0]["lr"] = rate
        for name, g in request(step).items():
            theirs[name].grad = g
        sgd.step()
    go(rule, DROPS)
    assert oracle.deviation(values(ours), values(theirs)) < 1e-15
    assert oracle.deviation(values(ours), literal(DROPS)[0]) > 1e-3


def test_mean_update_is_what_moved():
    parameters = start()
    rule = rule_for(parameters, 2.0, False)
    assert rule.mean_update("conv1") == 0
    go(rule, [0.1, 0.1])
    before = values(parameters)
    rule.set_rate(0.01)
    for name, g in request(9).items():
        parameters[name].grad = g
    rule.step()
    moved = (values(parameters)["conv1.weight"] - before["conv1.weight"]).abs().mean()
    assert abs(rule.mean_update("conv1") / float(moved) - 1) < 1e-9
    rule.set_rate(0.0)
    assert rule.mean_update("conv1") == 0


def test_no_step_imports_the_compiler_of_torch() -> None:
    """Which would cost each tower 145 MB and one and a half seconds; a training never compiles anything."""
    program = (
        "import sys, torch; from twotower.training.optim import VelocitySGD as Rule; "
        "weight = torch.nn.Parameter(torch.ones(3)); sgd = Rule({'conv1.weight': weight}, 0.9, 0.0, 1.0, True); "
        "sgd.set_rate(0.1); weight.sum().backward(); sgd.step(); assert weight[0] < 1; "
        "assert 'torch._dynamo' not in sys.modules; torch.optim.SGD([weight]); assert 'torch._dynamo' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr

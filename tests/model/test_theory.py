"""docs/theory.md: its numbers by gradient descent on the project's own Gaussians and KL terms, and its tables by these.

The functions that return rows are the tables; each has a test of its own against what the page derives.
"""

import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.latent import Gaussian, kl
from model.objective import RECIPES, ObjectiveConfig, kl_terms
from trainer import loop
from trainer.report import Counts

PAGE = Path(__file__).parents[2] / "docs" / "theory.md"
Row = list[str | float]


def column(*values: float) -> Tensor:
    """Values as [N, 1, 1]: N answers, one slot of width one."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)


def free(*values: float) -> Tensor:
    return column(*values).requires_grad_()


def descend(
    loss: Callable[[], Tensor], parameters: list[Tensor], rate: float, steps: int, momentum: float = 0.0
) -> None:
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(), parameters)
        with torch.no_grad():
            for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                velocity.mul_(momentum).add_(gradient)
                parameter -= rate * velocity


# Section 2: the forward KL alone. Posteriors of sigma 1/2, each answer as often as it is listed.


def forward_optimum(answers: tuple[float, ...]) -> Row:
    q = Gaussian(column(*answers), column(*[math.log(0.5)] * len(answers)))
    p = Gaussian(free(0.0), free(0.0))

    def loss() -> Tensor:
        return kl_terms(RECIPES["amvl"], p, q)[0] / len(answers)

    descend(loss, list(p), 0.2, 120, momentum=0.5)
    names = ", ".join(f"{a:g}" for a in answers).replace("-", "−")
    return [names, q.mean.var(correction=0).item(), p.mean.item(), (2 * p.log_sigma).exp().item(), loss().item()]


@cache
def forward_alone() -> list[Row]:
    return [forward_optimum(answers) for answers in ((1.0,), (-1.0, 3.0), (-1.0, -1.0, -1.0, 3.0))]


def test_forward_kl_alone_matches_moments():
    for _, variance, _, s_p2, nats in forward_alone():
        assert s_p2 == pytest.approx(0.25 + variance, abs=1e-5)
        assert nats == pytest.approx(0.5 * math.log(1 + variance / 0.25), abs=1e-6)
    assert [row[2] for row in forward_alone()] == pytest.approx([1, 1, 0], abs=1e-5)


# Section 3: the linear model, with kappa = 1.


class Linear:
    """N answers to one x; u and v are how far the means of q and p are from m, the mean that x alone supports."""

    m = 0.3

    def __init__(
        self,
        answers: tuple[float, ...] = (1.0,),
        name: str = "amvl",
        alpha: float = 0.5,
        beta: float = 1.0,
        gamma: float = 0.0,
        sigma: float = 1.0,
    ) -> None:
        self.answers, self.recipe = column(*answers), RECIPES[name]
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.q = Gaussian(free(*[self.m] * len(answers)), free(*[math.log(sigma)] * len(answers)))
        self.p = Gaussian(free(self.m), free(math.log(sigma)))

    def loss(self) -> Tensor:
        # The mean of a quadratic over the draws m_q - s_q and m_q + s_q is its mean over all z ~ q.
        z = self.q.sample(torch.tensor([-1.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1))
        ntp = ((z - self.m - self.answers) ** 2 / 2).mean(0).sum()
        forward, reverse = kl_terms(self.recipe, self.p, self.q)
        pull = self.alpha / 2 * ((self.p.mean - self.m) ** 2).sum() if self.alpha < math.inf else 0.0
        return (ntp + self.beta * forward + self.gamma * reverse) / len(self.answers) + pull

    def settle(self, rate: float = 0.5, steps: int = 120, momentum: float = 0.4, learned: tuple = ()) -> "Linear":
        means = [self.q.mean] if self.alpha == math.inf else [self.q.mean, self.p.mean]
        descend(self.loss, [*means, *learned], rate, steps, momentum)
        return self

    @property
    def u(self) -> float:
        return (self.q.mean - self.m).mean().item()

    @property
    def v(self) -> float:
        return (self.p.mean - self.m).item()

    @property
    def spread(self) -> float:
        return self.q.mean.var(correction=0).item()


def fixed_point(alpha: float, b: float, g: float) -> tuple[float, float]:
    """u and v for kappa = a = 1, as the page has them."""
    rho = 0.0 if alpha == math.inf else b / (alpha + b)
    u = 1 / (1 + g * (1 - rho))
    return u, rho * u


PULLS = {"0.5": 0.5, "0": 0.0, "∞": math.inf}
SETTINGS = (("0.5", 0.0), ("0.5", 0.5), ("0.5", 2.0), ("0", 0.0), ("0", 2.0), ("∞", 0.0), ("∞", 2.0))


@cache
def one_answer() -> list[Row]:
    ends = [(alpha, g, Linear(alpha=PULLS[alpha], gamma=g).settle()) for alpha, g in SETTINGS]
    return [[alpha, g, end.u, end.v] for alpha, g, end in ends]


@cache
def walk(gamma: float) -> float:
    """Time, steps times learning rate, until v = 0.9 a where the prior has no pull of its own."""
    model, rate, steps = Linear(alpha=0.0, gamma=gamma), 0.02, 0
    while model.v < 0.9 and steps < 1000:
        model.settle(rate, 1, momentum=0.0)
        steps += 1
    return steps * rate


@cache
def tight() -> list[Row]:
    rows: list[Row] = []
    for sigma, beta, gamma in ((1.0, 1.0, 1.0), (0.1, 1.0, 1.0), (0.1, 2.0, 1.0), (0.1, 2.0, 2.0)):
        stiffest = (beta + gamma) / sigma**2 + 1.5
        end = Linear(beta=beta, gamma=gamma, sigma=sigma).settle(3 / stiffest, 250, momentum=0.85)
        rows.append([sigma, beta, gamma, end.u, end.v])
    return rows


@cache
def many_answers() -> list[Row]:
    rows: list[Row] = []
    for gamma in (0.0, 0.5, 2.0):
        pulled = Linear((-1.0, 3.0), gamma=gamma).settle()
        follows = Linear((-1.0, 3.0), alpha=0.0, gamma=gamma)
        follows.settle(0.2, 250, learned=(follows.p.log_sigma,))
        rows.append([gamma, pulled.v, follows.v, pulled.spread, (2 * follows.p.log_sigma).exp().item()])
        assert follows.spread == pytest.approx(pulled.spread, abs=1e-6)
    return rows


def test_one_answer_settles_at_the_fixed_points():
    for alpha, g, u, v in one_answer():
        assert (u, v) == pytest.approx(fixed_point(PULLS[alpha], 1.0, g), abs=1e-6)
    assert [row[2:] for row in one_answer() if row[0] == "0"] == [pytest.approx([1, 1], abs=1e-6)] * 2


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_without_a_pull_of_the_prior_gamma_only_delays(gamma: float):
    """Against the exact solution of du/dt = a - u - g (u - v), dv/dt = u - v."""
    flow = torch.tensor([[-1.0 - gamma, gamma], [1.0, -1.0]], dtype=torch.float64)
    left = torch.linalg.matrix_exp(flow * walk(gamma)) @ torch.ones(2, dtype=torch.float64)
    assert 1 - left[1].item() == pytest.approx(0.9, abs=0.005)
    assert walk(0.0) < walk(0.5) < walk(2.0)


def test_tight_gaussians_leave_the_ratio_of_gamma_to_beta():
    for sigma, beta, gamma, u, v in tight():
        assert (u, v) == pytest.approx(fixed_point(0.5, beta / sigma**2, gamma / sigma**2), abs=1e-6)
        assert u == pytest.approx(1 / (1 + gamma * 0.5 / (0.5 * sigma**2 + beta)), abs=1e-6)
        if sigma == 0.1:
            assert (u, v) == pytest.approx([1 / (1 + 0.5 * gamma / beta)] * 2, abs=0.005)


def test_learned_sigmas_shrink_to_their_bound():
    """Here log sigma -1.5, as the heads have one."""
    model = Linear(gamma=1.0)
    for _ in range(30):
        model.settle(0.02, 20, momentum=0.8, learned=(model.q.log_sigma, model.p.log_sigma))
        for log_sigma in (model.q.log_sigma, model.p.log_sigma):
            log_sigma.data.clamp_(min=-1.5)
    assert model.q.log_sigma.item() == model.p.log_sigma.item() == -1.5
    model.settle(0.05, 100, momentum=0.8)
    assert (model.u, model.v) == pytest.approx(fixed_point(0.5, math.exp(3), math.exp(3)), abs=1e-5)


def test_many_answers_gamma_narrows_the_spread_by_the_square():
    for g, pulled_v, v, spread, s_p2 in many_answers():
        assert pulled_v == pytest.approx(fixed_point(0.5, 1.0, g)[1], abs=1e-6)
        assert v == pytest.approx(1, abs=1e-6)
        assert spread == pytest.approx(4 / (1 + g) ** 2, abs=1e-6)
        assert s_p2 == pytest.approx(1 + spread, abs=1e-5)


def test_an_elbo_has_the_fixed_points_of_g_equal_to_b_and_the_forward_kl_those_of_g_equal_to_0():
    for beta in (0.5, 2.0):
        for name, g in (("elbo", beta), ("forward", 0.0)):
            end = Linear(name=name, beta=beta).settle()
            assert (end.u, end.v) == pytest.approx(fixed_point(0.5, beta, g), abs=1e-6)


# Section 5: nats, for two answers with posteriors N(R, 1) and N(-R, 1); decoder and priors are fitted.

NOISE = torch.linspace(-10, 10, 2001, dtype=torch.float64)  # nodes of a quadrature over a standard normal
CHANCE = torch.softmax(-(NOISE**2) / 2, 0)
FREQUENCIES = torch.tensor([0.8, 0.2], dtype=torch.float64)


def minimum(loss: Callable[[], Tensor], *parameters: Tensor) -> float:
    optimizer = torch.optim.LBFGS(parameters, max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return loss().item()


def draws(q: Gaussian) -> Tensor:
    """z ~ q at the nodes, [N answers, nodes]."""
    return q.sample(NOISE.view(-1, 1, 1, 1)).squeeze((2, 3)).T


def coded(r: float) -> Row:
    q = Gaussian(column(r, -r), column(0.0, 0.0))
    z, answer = draws(q), column(1.0, -1.0).flatten(1)
    # log N(z; mean, 1) but for a constant: of the answer's own posterior, and of both.
    own, first, second = (-((z - mean) ** 2) / 2 for mean in (r * answer, r, -r))

    def expected(values: Tensor) -> Tensor:
        return FREQUENCIES @ values @ CHANCE

    slope, bias, logit, mean, log_sigma = (free(0.0) for _ in range(5))

    def ntp() -> Tensor:
        return expected(-F.logsigmoid(answer * (slope * z + bias).squeeze(0)))

    def to_mixture() -> Tensor:
        mixture = torch.logaddexp(F.logsigmoid(logit) + first, F.logsigmoid(-logit) + second).squeeze(0)
        return expected(own - mixture)

    def to_gaussian() -> Tensor:
        return FREQUENCIES @ kl(q, Gaussian(mean, log_sigma)).flatten()

    even = to_mixture().item()  # as long as the logit is 0
    left = minimum(ntp, slope, bias)
    saved = -(FREQUENCIES * FREQUENCIES.log()).sum().item() - left
    return [r, left, saved, minimum(to_mixture, logit), even, minimum(to_gaussian, mean, log_sigma)]


@cache
def coding() -> list[Row]:
    return [coded(r) for r in (0.0, 1.0, 2.0, 4.0)]


def posterior_term(name: str, p: Gaussian, q: Gaussian) -> Tensor:
    """The KL that trains the posterior: the ELBO's forward one, AMVL's reverse one."""
    return kl_terms(RECIPES[name], p, q)[0 if name == "elbo" else 1]


def best_responses(r: float) -> tuple[Gaussian, Gaussian]:
    """The posterior of answer 1 and the best Gaussian prior, for two answers equally frequent."""
    return Gaussian(free(r), column(0.0)), Gaussian(column(0.0), column(math.log(1 + r**2) / 2))


def untold(r: float, z: Tensor) -> Tensor:
    """NTP of answer 1 under the best decoder."""
    return -F.logsigmoid(2 * r * z.flatten()) @ CHANCE


def gradient_to_r(name: str, r: float, weight: float) -> float:
    q, p = best_responses(r)
    loss = untold(r, draws(q)) + weight * posterior_term(name, p, q)
    return torch.autograd.grad(loss, q.mean)[0].item()


def rest(name: str, weight: float) -> float:
    """R left of which leaking more lowers the loss, and right of which it raises it, by bisection."""
    low, high = 0.0, 6.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if gradient_to_r(name, middle, weight) < -1e-12 else (low, middle)
    return low


@cache
def leaks() -> list[Row]:
    rows: list[Row] = []
    for weight in (1.0, 0.5, 0.1, 0.001):
        row: Row = [weight]
        for r in (rest("elbo", weight), rest("amvl", weight)):
            row += [r, math.log(2) - untold(r, draws(best_responses(r)[0])).item()]
        rows.append(row)
    return rows


def test_coding_the_answer_is_neutral_once_the_prior_has_learned_the_frequencies():
    for r, left, saved, mixture, even, gaussian in coding():
        assert mixture == pytest.approx(saved, abs=1e-6)
        assert even > mixture + 0.05 if r else even == pytest.approx(mixture, abs=1e-9)
        assert gaussian > mixture + 0.01 if r else gaussian == pytest.approx(mixture, abs=1e-9)
        assert gaussian == pytest.approx(0.5 * math.log(1 + 4 * 0.8 * 0.2 * r**2), abs=1e-6)
        assert left + saved == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))
    assert coding()[0][2] == pytest.approx(0, abs=1e-9)
    assert coding()[-1][4] == pytest.approx(math.log(2), abs=1e-3)


def test_reverse_price_of_a_leak_has_no_ceiling():
    for r in (0.5, 1.0, 2.0, 4.0):
        q, p = best_responses(r)
        forward, reverse = (term.item() for term in kl_terms(RECIPES["amvl"], p, q))
        assert forward == pytest.approx(math.log(1 + r**2) / 2)
        assert reverse == pytest.approx(r**2 - math.log(1 + r**2) / 2)


def test_gradient_of_a_leak_is_that_of_the_derivation():
    for r in (0.3, 1.0, 2.5):
        error = 1 - (torch.tanh(r * draws(best_responses(r)[0]).detach().flatten()) @ CHANCE).item()
        assert gradient_to_r("amvl", r, 0.7) == pytest.approx(r * (0.7 - error), abs=1e-9)
        assert gradient_to_r("elbo", r, 0.7) == pytest.approx(r * (0.7 / (1 + r**2) - error), abs=1e-9)


def test_leaking_stops_paying_at_a_nat_for_a_nat():
    for name in ("elbo", "amvl"):
        assert all(gradient_to_r(name, r, 1.0) > 0 for r in (0.1, 0.5, 1.0, 2.0, 4.0))
        assert gradient_to_r(name, 0.1, 0.95) < 0
    for _, elbo, _, amvl, _ in leaks()[1:]:
        assert 0 < amvl < elbo


# Section 6: the scales that training itself uses.


@cache
def reductions() -> list[Row]:
    rows: list[Row] = []
    for k, d, t in ((8, 512, 1), (8, 512, 4), (8, 512, 64)):
        counts = Counts(targets=100 * t, samples=100, tokens=0, image_tokens=0, flops=0, shrunk=0, dropped=0, bad=0)
        scales = []
        for reduction in ("token", "mean"):
            config = SimpleNamespace(
                objective=ObjectiveConfig(kl_reduction=reduction),
                latent=SimpleNamespace(slots=k, width=d),
                train=SimpleNamespace(steps=1),
            )
            with patch.object(loop.dist, "get_world_size", lambda: 2):
                scales.append(loop._weights(config, 1, counts))
        token, mean = scales
        assert token.per_token == mean.per_token == token.per_nat
        rows.append([k, d, t, token.per_nat / mean.per_nat])
    return rows


def test_mean_reduction_makes_a_nat_cheaper():
    for k, d, t, times in reductions():
        assert times == pytest.approx(k * d / t)


# Section 7: what the posterior feels.


@cache
def pulls() -> list[Row]:
    rows: list[Row] = []
    for sigma in (1.0, 0.5, 0.1):
        row: Row = [sigma]
        for name in ("elbo", "amvl"):
            q, p = Gaussian(free(1.0), free(math.log(sigma))), Gaussian(free(0.0), free(0.0))
            row += [gradient.item() for gradient in torch.autograd.grad(posterior_term(name, p, q), list(q))]
        rows.append(row)
    return rows


def width(name: str, gap: float, until: str) -> float:
    """s_q^2 from s_p = s_q = 1 at a gap between the means that stays."""
    q, p = Gaussian(column(gap), free(0.0)), Gaussian(column(0.0), free(0.0))

    def prior() -> Tensor:
        return kl_terms(RECIPES[name], p, q)[0]

    def posterior() -> Tensor:
        return posterior_term(name, p, q)

    def everything() -> Tensor:
        ntp = (2 * q.log_sigma).exp().sum() / 2
        return ntp + prior() + (posterior() if name == "amvl" else 0)

    if until == "held":
        descend(posterior, [q.log_sigma], 0.1, 60, momentum=0.4)
    elif until == "settled":
        descend(everything, [p.log_sigma, q.log_sigma], 0.05, 150, momentum=0.5)
    for _ in range(3 if until == "three rounds" else 0):
        descend(prior, [p.log_sigma], 0.1, 60, momentum=0.4)
        descend(posterior, [q.log_sigma], 0.1, 60, momentum=0.4)
    return (2 * q.log_sigma).exp().item()


@cache
def widths() -> list[Row]:
    ends = ("held", "three rounds", "settled")
    return [[gap] + [width(name, gap, end) for end in ends for name in ("elbo", "amvl")] for gap in (1.0, 2.0)]


@pytest.mark.parametrize("name", ["amvl", "elbo"])
def test_gradients_in_closed_form(name: str):
    torch.manual_seed(0)
    q, p = (Gaussian(torch.randn(4, 2, 3).double(), 0.5 * torch.randn(4, 2, 3).double()) for _ in range(2))
    parameters = [tensor.requires_grad_() for tensor in (*p, *q)]
    gap, q2, p2 = q.mean - p.mean, (2 * q.log_sigma).exp(), (2 * p.log_sigma).exp()
    to_prior, nothing = (-gap / p2, 1 - (q2 + gap**2) / p2), (torch.zeros_like(gap),) * 2
    to_posterior = {"elbo": (gap / p2, q2 / p2 - 1), "amvl": (gap / q2, 1 - (p2 + gap**2) / q2)}[name]
    forward, reverse = kl_terms(RECIPES[name], p, q)
    terms = [(forward, to_prior + to_posterior)]
    if name == "amvl":
        terms = [(forward, to_prior + nothing), (reverse, nothing + to_posterior)]
    for term, expected in terms:
        got = torch.autograd.grad(term, parameters, allow_unused=True, materialize_grads=True)
        for gradient, formula in zip(got, expected, strict=True):
            torch.testing.assert_close(gradient, formula)


def test_a_tight_posterior_is_punished_harder():
    for sigma, *gradients in pulls():
        assert gradients == pytest.approx([1, sigma**2 - 1, 1 / sigma**2, 1 - 2 / sigma**2])


def test_widths_of_the_posterior():
    for gap, *got in widths():
        square = gap**2
        elbo = (math.sqrt(square**2 + 4 * square) - square) / 2  # where s^2 (s^2 + D^2) = D^2
        expected = [1, 1 + square, 1 + 3 * square, 1 + 6 * square, elbo, math.sqrt(2) * gap]
        assert got == pytest.approx(expected, abs=1e-4)


# The page.

TABLES: dict[str, Callable[[], list[Row]]] = {
    "m_q of the answers": forward_alone,
    "α": one_answer,
    "s": tight,
    "g": many_answers,
    "R": coding,
    "weight, γ or β": leaks,
    "k": reductions,
    "s_q": pulls,
    "D": widths,
}
WORDS = {"term", "the prior"}  # tables of formulas; test_gradients_in_closed_form has the first


def tables(page: str) -> dict[str, list[list[str]]]:
    """By the head of their first column."""
    found = {}
    for block in re.findall(r"(?:^\|.*\n)+", page, re.M):
        head, _, *body = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        assert head[0] not in found, f"two tables begin with {head[0]}"
        found[head[0]] = body
    return found


def agrees(printed: str, value: str | float) -> bool:
    """Whether this is the value, to the digits printed."""
    if isinstance(value, str):
        return printed == value
    number = printed.replace("−", "-").replace(",", "")
    digits = len(number.partition(".")[2])
    return abs(float(number) - value) <= 0.5 * 10**-digits + 1e-6


def test_every_table_of_the_page_is_computed_here():
    assert set(tables(PAGE.read_text())) == set(TABLES) | WORDS


@pytest.mark.parametrize("head", TABLES)
def test_numbers_in_the_tables(head: str):
    rows = TABLES[head]()
    printed = tables(PAGE.read_text())[head]
    assert len(printed) == len(rows)
    for cells, values in zip(printed, rows, strict=True):
        wrong = [(cell, value) for cell, value in zip(cells, values, strict=True) if not agrees(cell, value)]
        assert not wrong, f"in the row {cells}, printed and computed: {wrong}"


def test_numbers_between_the_tables():
    text = re.sub(r"^\|.*\n|\[arXiv [^)]*\)", "", PAGE.read_text(), flags=re.M)
    times = re.search(r"a time of (\S+), (\S+) and (\S+) for g = 0, 0\.5 and 2", " ".join(text.split()))
    assert times and all(map(agrees, times.groups(), map(walk, (0.0, 0.5, 2.0))))
    settings = {"0.5", "0.9", "0.8", "0.2"}  # given, not found
    assert set(re.findall(r"\d+\.\d+", text)) <= settings | set(times.groups())

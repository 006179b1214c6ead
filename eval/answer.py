"""Batches of items to predictions: one model on one device."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from data.processor import Encoded
from data.sample import DataError, Sample
from eval.models import Model
from eval.predictions import Prediction, pack, unpack
from eval.results import FREE
from eval.settings import Settings
from model.build import markers_of
from model.generate import Decoding, Together, generate, score
from model.latent_vlm import LatentVLM
from model.thinking import prior_gaussians

REPLY = 256  # tokens of a reply that a batch has room for; few are longer, and a batch that is too large is halved
# As PyTorch says it of the CPU; the last is oneDNN's.
# As PyTorch, oneDNN, cuBLAS and cuDNN say it.
OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "could not create a primitive",
    "ALLOC_FAILED",
)


@dataclass(frozen=True)
class Job:
    """One item to run."""

    id: str
    sample: Sample  # its prompt is the question
    options: tuple[str, ...]  # what `score` measures
    cost: int  # tokens
    settings: Settings  # how it is asked; effective ones
    z: str | None = None  # packed [k, d], where latents are given


def job_id(model: Model, settings: Settings, sample: Sample, options: tuple[str, ...], z: str | None = None) -> str:
    """Tells a prediction apart by everything it depends on: model, prompt, pictures, options, settings, given z."""
    own = settings.model_dump_json(exclude=set(FREE))
    digest = hashlib.sha256(f"{model.id}/{own}/{sample.key}/{options}/{sample.text.question}".encode())
    for image in sample.images:
        digest.update(hashlib.sha256(image).digest())
    if z is not None:
        digest.update(z.encode())
    return digest.hexdigest()[:16]


class Planner:
    """Items to jobs, and jobs to batches, before any picture is decoded."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.processor = model.processor(settings)
        self.slots = model.slots

    def job(self, sample: Sample, options: tuple[str, ...], z: str | None = None) -> Job:
        """An item whose pictures cannot be read costs nothing; running it says why."""
        settings = self.settings
        draws = settings.thinking.draws
        try:
            tokens = self.processor.length(sample)
        except DataError:
            tokens = 0
        most = min(settings.max_new_tokens or 0, REPLY)
        behind = most * draws if settings.mode == "generate" else sum(map(len, options)) * draws
        cost = tokens + behind + self._latent_tokens()
        return Job(job_id(self.model, settings, sample, options, z), sample, options, cost, settings, z)

    def _latent_tokens(self) -> int:
        """Those of the prior's slots, and for every draw of a decode branch with its marks."""
        k, thinking = self.slots, self.settings.thinking
        if self.settings.mode == "prior":
            return k
        without_prior = {"off": 0, "markers": 2, "given": k + 2}
        return without_prior.get(thinking.kind, k + thinking.draws * (k + 2))

    def batches(self, jobs: Iterable[Job]) -> list[list[Job]]:
        """Jobs in batches of at most `tokens` (at least one job), the longest first. The same for the same jobs."""
        batches: list[list[Job]] = []
        room = 0
        for job in sorted(jobs, key=lambda job: (-job.cost, job.id)):
            if not batches or job.cost > room:
                batches.append([])
                room = self.settings.tokens
            batches[-1].append(job)
            room -= job.cost
        return batches


class Answerer:
    """A loaded model. Items that cannot be run become predictions that say why.

    `settings` say how it is loaded and how large a batch may be. How it is asked stands in the jobs, and all jobs of a
    batch are asked alike, pictures or no pictures apart.
    """

    def __init__(self, model: Model, settings: Settings, device: str) -> None:
        self.processor = model.processor(settings)
        self.model: LatentVLM = model.load(settings).to(device)
        self.markers = markers_of(self.processor)
        self.ends = model.ends(self.processor)
        self.most = settings.tokens  # of a batch, tokens; less once one did not fit into memory
        self.ids: dict[str, list[int]] = {}  # of options

    def stream(self, batches: Iterable[list[Job]]) -> Iterator[list[Prediction]]:
        """Predictions, batch by batch. The next batch's pictures are decoded while the model runs this one."""
        with ThreadPoolExecutor(1) as ahead:
            waiting: Future | None = None
            for batch in batches:
                following = ahead.submit(self.encode, batch)
                if waiting:
                    yield self.answer(waiting.result())
                waiting = following
            if waiting:
                yield self.answer(waiting.result())

    def encode(self, batch: list[Job]) -> list[tuple[Job, Encoded | str | None]]:
        """Jobs with their tokens and pixels, with what is wrong with them, or None: no memory for them now."""
        return [(job, self._encoded(job)) for job in batch]

    def _encoded(self, job: Job) -> Encoded | str | None:
        try:
            return self.processor.encode(job.sample)
        except DataError as error:
            return str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def answer(self, batch: list[tuple[Job, Encoded | str | None]], together: Together = bool) -> list[Prediction]:
        """The predictions of a batch, in parts where it does not fit into memory."""
        failed = [Prediction(id=job.id, key=job.sample.key, failed=x) for job, x in batch if isinstance(x, str)]
        good = [(job, x) for job, x in batch if isinstance(x, Encoded)]
        found = failed + [p for part in self._parts(good) for p in self._run_in_halves(part, together)]
        waiting = [job for job, x in batch if x is None]
        del batch, good  # before those that had no room beside them
        for job in waiting:
            found += self.answer([(job, self._encoded(job) or "its pictures do not fit into memory alone")], together)
        return found

    def _parts(self, batch: list[tuple[Job, Encoded]]) -> Iterator[list[tuple[Job, Encoded]]]:
        """As large as has fitted so far."""
        part: list[tuple[Job, Encoded]] = []
        for job, item in batch:
            if part and sum(j.cost for j, _ in part) + job.cost > self.most:
                yield part
                part = []
            part.append((job, item))
        if part:
            yield part

    def _run_in_halves(self, batch: list[tuple[Job, Encoded]], together: Together) -> list[Prediction]:
        try:
            return self._run(batch, together)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200] or "MemoryError"
        # Outside the handler, whose traceback holds on to the tensors that did not fit.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) == 1:
            job = batch[0][0]
            return [Prediction(id=job.id, key=job.sample.key, failed=f"does not fit into memory alone: {reason}")]
        self.most = min(self.most, sum(job.cost for job, _ in batch) // 2)
        half = len(batch) // 2
        return self._run_in_halves(batch[:half], together) + self._run_in_halves(batch[half:], together)

    def _run(self, batch: list[tuple[Job, Encoded]], together: Together) -> list[Prediction]:
        jobs, items = [job for job, _ in batch], [item for _, item in batch]
        settings, thinking = jobs[0].settings, jobs[0].settings.thinking
        if settings.mode == "prior":
            means = prior_gaussians(self.model, items, self.markers).mean
            return [_prior(job, mean) for job, mean in zip(jobs, means, strict=True)]
        given = None
        if thinking.kind == "given":
            given = [unpack(job.z, self.model.config.slots) for job in jobs if job.z is not None]
            assert len(given) == len(jobs)
        if settings.mode == "score":
            options = [[self._ids(option) for option in job.options] for job in jobs]
            found = score(self.model, items, self.markers, options, thinking, settings.seed, together, given)
            return [_scored(job, x) for job, x in zip(jobs, found, strict=True)]
        assert settings.max_new_tokens
        stopped = partial(self.processor.holds, stops=settings.stop) if settings.stop else None
        decoding = Decoding(
            self.ends, settings.max_new_tokens, settings.temperature, settings.top_p, settings.seed, stopped
        )
        replies = generate(self.model, items, self.markers, decoding, thinking, together, given)
        return [
            Prediction(
                id=job.id,
                key=job.sample.key,
                replies=tuple(self.processor.before(reply.ids, settings.stop) for reply in of_item),
                finish=tuple(reply.finish for reply in of_item),
            )
            for job, of_item in zip(jobs, replies, strict=True)
        ]

    def _ids(self, option: str) -> list[int]:
        if option not in self.ids:
            self.ids[option] = self.processor.tokenizer(option, add_special_tokens=False)["input_ids"]
        return self.ids[option]


def _scored(job: Job, scores: torch.Tensor) -> Prediction:
    """With the log-likelihood of every option [O]."""
    if not scores.isfinite().all():
        return Prediction(
            id=job.id, key=job.sample.key, failed=f"log-likelihoods that are no numbers: {scores.tolist()}"
        )
    return Prediction(id=job.id, key=job.sample.key, scores=tuple(scores.tolist()))


def _prior(job: Job, mean: torch.Tensor) -> Prediction:
    """With the prior's mean [k, d]."""
    if not mean.isfinite().all():
        return Prediction(id=job.id, key=job.sample.key, failed="a prior's mean with values that are no numbers")
    return Prediction(id=job.id, key=job.sample.key, prior=pack(mean))


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(s in str(error) for s in OUT_OF_MEMORY)

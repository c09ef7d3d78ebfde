# SPDX-License-Identifier: Apache-2.0
"""`aerie train draft`: prompts, answers, captured states, draft vocabulary, training, export, acceptance, card.

Answers and captured states are keyed by everything that shapes them, so trainings that differ in the head, the seed
or the optimisation share them; a training killed at any time goes on from its last checkpoint.
"""

from contextlib import ExitStack
from pathlib import Path

from aerie.artefacts import provenance
from aerie.trainer.draft.card import CARD, portable, publish
from aerie.trainer.draft.export import export
from aerie.trainer.draft.loop import train
from aerie.trainer.draft.parallel import Processes
from aerie.trainer.draft.phases import phases_of
from aerie.trainer.draft.prepared import Prepared, short_hash
from aerie.trainer.draft.progress import TrainingProgress
from aerie.trainer.draft.recipe import DraftRecipe
from aerie.trainer.draft.recorder import Recorder
from aerie.trainer.draft.support import check_files
from aerie.trainer.output import check_apart, check_output


def run(recipe_path: Path, prepare_only: bool = False) -> Path:
    """Train the draft a recipe file describes; returns the checkpoint's folder, or that of the captured states."""
    recipe = DraftRecipe.read(recipe_path)
    if not prepare_only:
        return run_recipe(recipe)
    _check_paths(recipe)
    with Prepared.of(recipe) as prepared:
        return prepared.folders[0]


def run_recipe(recipe: DraftRecipe) -> Path:
    """Train the draft a recipe describes; returns the checkpoint's folder.

    Raises RecipeError, DataError, TrainingError.
    """
    _check_paths(recipe)
    training = recipe.training
    processes = Processes(training.accumulate, training.sharding)
    with ExitStack() as stack:
        prepared = stack.enter_context(Prepared.of(recipe, make=processes.count == 1))
        inputs = prepared.hashes
        settings = recipe.model_dump(mode="json", include={"head", "training"})
        folder = recipe.work / f"training-{short_hash(settings, inputs)}"
        updates = sum(phase.updates for phase in phases_of(training, prepared.data))
        progress = stack.enter_context(TrainingProgress(updates, hidden=not processes.first))
        recorder = stack.enter_context(Recorder(recipe, folder, progress.say, active=processes.first))
        state = train(
            prepared.head(recipe.head, training.seed, recipe.target),
            prepared.teacher,
            prepared.data,
            prepared.validation,
            training,
            folder / "checkpoint.pt",
            watchers=[progress, recorder],
            snapshot_every=recipe.served.every if recipe.served is not None else None,
        )
        if processes.first:
            record = provenance(recipe.model_dump(mode="json"), [training.seed], {**prepared.target_files, **inputs})
            trained = folder / "draft"
            export(state.head, trained, record, recipe.weights, state.history, prepared.description)
            served = recorder.measure(trained, state.update)
            publish(trained, recipe.output, recorder.entries(), served)
    return recipe.output


def _check_paths(recipe: DraftRecipe) -> None:
    check_apart(recipe.output, work=recipe.work, target=recipe.target, start=recipe.head.start)
    portable_recipe = portable(recipe.model_dump(mode="json"))
    check_output(recipe.output, CARD, portable_recipe, lambda card: card["recipe"])
    check_files(recipe.target)

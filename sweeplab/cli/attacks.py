"""Commands on attacks: look at triggers, optimise BadCLIP's patch, write poisoned pairs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeplab.cli.models import parameter_of
from sweeplab.cli.program import SURROUNDINGS, AsJson, Only, Overrides, Script, Smoke, app, command, say, say_json
from sweeplab.cli.running import check_sources
from sweeplab.cli.scripts import one_sweep
from sweeplab.specs import InvalidInput
from sweeplab.storage.home import home_folder

if TYPE_CHECKING:
    from sweeplab.attacks.poisoning import PoisonPlan
    from sweeplab.data.tables import PairTable

attack_app = typer.Typer(no_args_is_help=True, help="Look at triggers, optimise a patch, and export poisoned pairs.")
app.add_typer(attack_app, name="attack", rich_help_panel=SURROUNDINGS)


@command(attack_app, "preview")
def attack_preview(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KIND... IMAGE...",
            help="Kinds of attack (badnet, wanet, ...), or JSON objects with `kind`; then image files.",
        ),
    ] = None,
    fields: Annotated[
        list[str] | None, typer.Option("--set", help="field=value, of one attack; may be repeated.")
    ] = None,
    script: Annotated[
        Path | None, typer.Option(help="Show poisoned pairs of this script's victim instead, with their captions.")
    ] = None,
    only: Only = None,
    smoke: Smoke = False,
    num: Annotated[int, typer.Option(min=1, help="With --script: pairs.")] = 9,
    to: Annotated[Path, typer.Option(help="The picture to write.")] = Path("preview.png"),
    image_size: Annotated[int, typer.Option(help="Side of the images that the model sees, in pixels.")] = 224,
    seed: Annotated[int, typer.Option(help="Of triggers that are drawn, such as a patch at a random place.")] = 0,
) -> None:
    """Write a picture of what attacks do.

    Of one attack a row an image: clean, triggered, and their difference, magnified. Of several attacks a row an attack:
    each image triggered, and the difference. With --script the poisoned pairs that a victim is trained on.
    """
    from sweeplab.attacks.preview import preview, preview_poisons

    if script is not None:
        if words or fields:
            raise InvalidInput("--script shows the attack of its sweep; leave out kinds, images and --set")
        table, plan, size = _poisons(script, only, [], smoke)
        picture, shown = preview_poisons(table, plan, num, image_size=size), "poisoned pairs"
    else:
        attacks, images = _attacks_and_images(words or [], fields or [])
        picture = preview(attacks, images, image_size=image_size, seed=seed)
        shown = "clean, triggered, difference" if len(attacks) == 1 else f"{len(attacks)} attacks"
    try:
        picture.save(to)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"--to={to} cannot be written ({error}); give a .png file in a folder that you can write to"
        ) from None
    say(f"{shown}: {to}")


def _attacks_and_images(words: list[str], fields: list[str]) -> tuple[list[Any], list[Path]]:
    """Attacks, which come first, and image files.

    Raises:
        InvalidInput: if there is no attack, or one of several is given fields.
    """
    count = next((place for place, word in enumerate(words) if _is_image(word)), len(words))
    if not count:
        raise InvalidInput(
            "no attack was given; name kinds such as badnet (`sweeplab attack list` has all), then image files; or "
            "give --script"
        )
    if fields and count > 1:
        raise InvalidInput('--set is for one attack; of several, give JSON objects: \'{"kind": "badnet", ...}\'')
    return [attack_of(word, fields) for word in words[:count]], [Path(word) for word in words[count:]]


def _is_image(word: str) -> bool:
    return not word.lstrip().startswith("{") and (bool(Path(word).suffix) or Path(word).is_file())


@command(attack_app, "list")
def attack_list(as_json: AsJson = False) -> None:
    """List all attacks with their fields and defaults.

    `targeted-images` takes the place of a whole poisoning, not only of its attack.
    """
    from sweeplab.attacks import ATTACKS
    from sweeplab.attacks.targeted import TargetedImages

    found = {
        member.model_fields["kind"].default: {
            name: "required" if field.is_required() else field.default
            for name, field in member.model_fields.items()
            if name != "kind"
        }
        for member in (*ATTACKS, TargetedImages)
    }
    if as_json:
        say_json(found)
        return
    for kind, fields in found.items():
        say(f"{kind:18} {', '.join(f'{name}={value}' for name, value in fields.items())}")


@command(attack_app, "badclip")
def attack_badclip(
    script: Annotated[Path, typer.Argument(help="Script whose sweep names architecture, pairs and target.")],
    checkpoint: Annotated[Path, typer.Argument(help="Clean model of that architecture.")],
    to: Annotated[Path, typer.Option(help="The .png file to write the patch to.")],
    fields: Annotated[
        list[str] | None, typer.Option("--set", help="field=value of the optimisation; may be repeated.")
    ] = None,
    only: Only = None,
    smoke: Smoke = False,
) -> None:
    """Optimise BadCLIP's patch against a clean model.

    The attack `image` stamps the patch, at position `center`.
    """
    from sweeplab.attacks.badclip import BadCLIP
    from sweeplab.commands.badclip_patch import optimise_for

    sweep = one_sweep(script, only, [], smoke)
    check_sources([sweep])
    settings = BadCLIP.model_validate(dict(parameter_of(field) for field in fields or []))
    optimise_for(sweep, checkpoint, settings, to)
    say(f"patch: {to}; stamp it with ImageTrigger(path={str(to)!r}, position='center')")


@command(attack_app, "export")
def attack_export(
    script: Script,
    to: Annotated[Path, typer.Option(help="Folder to write to; must not exist yet.")],
    overrides: Overrides = None,
    only: Only = None,
    smoke: Smoke = False,
) -> None:
    """Write the poisoned pairs of a script's victim in the layout of CleanCLIP's scripts."""
    from sweeplab.attacks.exchange import export_poisoned_csv

    table, plan, image_size = _poisons(script, only, overrides or [], smoke)
    written = export_poisoned_csv(table, plan, to, image_size=image_size)
    say(f"{len(plan.indices):,} poisoned and {len(table) - len(plan.indices):,} clean pairs: {written}")


def _poisons(
    script: Path, only: str | None, overrides: list[str], smoke: bool
) -> tuple["PairTable", "PoisonPlan", int]:
    """The poisoned training table of a script's victim, which rows of it are poisoned, and the side of its images.

    Raises:
        InvalidInput: if the victim is a given checkpoint.
    """
    from sweeplab.experiment import PretrainedVictim
    from sweeplab.sweep.checks import machine_for
    from sweeplab.worker.inputs import victim_table

    sweep = one_sweep(script, only, overrides, smoke)
    victim = sweep.original_victim()
    if not isinstance(victim, PretrainedVictim):
        raise InvalidInput(f"{sweep.name}: its victim is a given checkpoint, which has no poison plan")
    check_sources([sweep])
    table, plan = victim_table(victim, machine_for(sweep, home_folder()))
    return table, plan, sweep.victim.architecture.image_size


def attack_of(text: str, fields: list[str]) -> Any:
    """An attack from its kind or its JSON, and from texts `field=value`.

    Raises:
        InvalidInput: for bad JSON, an unknown kind, or a bad field.
    """
    from sweeplab.commands.evaluate import attack_class

    try:
        values = json.loads(text) if text.lstrip().startswith("{") else {"kind": text}
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"attack {text!r} is not a JSON object ({error})") from None
    values |= dict(parameter_of(field) for field in fields)
    return attack_class(values.get("kind"), "attack ").model_validate(values)

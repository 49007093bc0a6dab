"""Recipes: YAML files and ``key=value`` overrides resolved into a checked :class:`~convattn.tasks.config.Recipe`."""

import dataclasses
import types
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from convattn.convert.targets import target_of
from convattn.data.fields import numbers_in
from convattn.errors import UserError, did_you_mean, user_path
from convattn.tasks.config import ConvertConfig, Recipe
from convattn.tasks.plain import read_settings, read_yaml
from convattn.tasks.reach import fetches, reaching, refuse_reaching

T = TypeVar("T")
COMMAND_LINE = "command line"

NOT_INHERITED = ("about", "published")
"""The keys that say something of one recipe alone: what extends it does not get them."""


def nearest(word: str, known: Iterable[str], noun: str) -> str:
    """Return the hint that follows an unknown word: the nearest known one and what exists.

    Example:
        >>> nearest("epoch", ["epochs", "seed"], "keys")
        'did you mean epochs? keys: epochs, seed'
    """
    known = sorted(known)
    return f"{did_you_mean(word, known)}{noun}: {', '.join(known)}"


def recipe_names(*, bases: bool = False) -> list[str]:
    """Return the names of the recipes that come with the package, with ``bases`` also of those that others extend.

    Example:
        >>> "digits" in recipe_names()
        True
    """
    files = (resources.files("convattn") / "recipes").iterdir()
    names = sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
    return [name for name in names if bases or not name.startswith("_")]


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None, *, trust: bool = False) -> Recipe:
    """Return the recipe of that name, or of a YAML file, with dotted overrides such as ``{"optimizer.lr": 0.1}``.

    Args:
        name: A recipe of :func:`recipe_names`, or the path of a file that ends in ``.yaml``.
        overrides: Settings that take the place of the recipe's.
        trust: Whether a file may name networks that open other files or the network, as ``hf-hub:owner/name`` does;
            overrides always may.

    Raises:
        UserError: for an unknown recipe, key or value, naming the file and the key.

    Example:
        >>> load_recipe("digits", {"optimizer.lr": 0.5, "epochs": 3}).optimizer.lr
        0.5
    """
    if name.endswith((".yaml", ".yml")):
        return read_recipe(user_path(name), overrides, trust=trust)
    if name not in recipe_names():
        raise UserError(f"no recipe {name!r}: {nearest(name, recipe_names(), 'recipes')} (or a path to a .yaml file)")
    return parse_recipe(_own_text(name), f"recipe {name}", overrides, trust=True)


def read_recipe(path: Path, overrides: Mapping[str, Any] | None = None, *, trust: bool = False) -> Recipe:
    """Return the recipe in a YAML file, with overrides; ``trust`` as for :func:`load_recipe`."""
    return parse_recipe(read_settings(path), str(path), overrides, trust=trust)


def parse_recipe(text: str, source: str, overrides: Mapping[str, Any] | None = None, *, trust: bool = False) -> Recipe:
    """Return the recipe that a YAML text holds; ``source`` names it in errors, ``trust`` as for :func:`load_recipe`."""
    overrides = overrides or {}
    if isinstance(weights := overrides.get("weights"), str):
        from convattn.tasks.starting import settings_of  # which reads recipes

        try:
            overrides = {**settings_of(weights, trust=trust), **overrides}
        except UserError as error:
            raise UserError(
                f"{COMMAND_LINE}: weights must be a run or its weights, got {weights!r}: {error}"
            ) from error
    recipe = build(Recipe, _extended(read_yaml(text, source), source), source)
    recipe = for_model(recipe, str(overrides.get("model", recipe.model)), source)
    by_file = recipe
    for key, value in overrides.items():
        if key.partition(".")[0] == "per_model":
            raise UserError(f"{COMMAND_LINE}: per_model is for recipe files; give the settings themselves")
        recipe = override(recipe, key, value)
    check_together(recipe, source)
    found = reaching(by_file.model, _network_options(by_file), fetching=fetches(_network_options(recipe)))
    refuse_reaching(source, _not_replaced(found, overrides), trust=trust)
    return recipe


def _extended(content: Any, source: str) -> Any:
    """Return the settings of a file laid over those of the recipes that it ``extends``, one after the other."""
    if content is None:
        return {}
    if not isinstance(content, Mapping) or "extends" not in content:
        return content
    names = content["extends"] if isinstance(content["extends"], list) else [content["extends"]]
    settings: dict[Any, Any] = {}
    for name in names:
        if name not in recipe_names(bases=True):
            hint = nearest(str(name), recipe_names(), "recipes")
            raise UserError(f"{source}: extends must be recipes that come with convattn, got {name!r}: {hint}")
        base = _extended(read_yaml(_own_text(name), name), name)
        settings = _merged(settings, {key: value for key, value in base.items() if key not in NOT_INHERITED})
    return _merged(settings, {key: value for key, value in content.items() if key != "extends"})


def _merged(base: Mapping[Any, Any], above: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return two mappings as one: what both have is merged where it is a mapping, else taken from ``above``."""
    merged = dict(base)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _own_text(name: str) -> str:
    return (resources.files("convattn") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def _network_options(recipe: Recipe) -> dict[str, Any]:
    started = {name: getattr(recipe, name) for name in ("pretrained", "weights", "backbone_weights")}
    return {**started, "model_args": recipe.model_args, "network.args": recipe.network.args}


def _not_replaced(found: Iterable[tuple[str, Any]], overrides: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a file that no override takes the place of: what is typed is the user's own word."""
    for name, value in found:
        if not any(f"{name}.".startswith(f"{said}.") for said in overrides):
            yield name, value


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Return the overrides that ``key=value`` words name, their values read as YAML.

    Example:
        >>> parse_overrides(["optimizer.lr=1e-2", "ema.decay=null", "model_args.stem=small"])
        {'optimizer.lr': '1e-2', 'ema.decay': None, 'model_args.stem': 'small'}
    """
    overrides = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"{word!r} is no setting: write key=value, such as optimizer.lr=0.1")
        overrides[key] = read_yaml(value, key)
    return overrides


def for_model(recipe: Recipe, model: str, source: str) -> Recipe:
    """Return the recipe with what its table ``per_model`` keeps for that model filled in, and the table gone.

    Every row is checked, whether it is for this model or not; ``source`` names the recipe in errors.

    Example:
        >>> table = {"b*": {"epochs": 3, "optimizer": {"lr": 0.5}}, "*2": {"model_args": {"depth": 2}}}
        >>> recipe = for_model(Recipe("a1", per_model=table), "b2", "mine")
        >>> recipe.epochs, recipe.optimizer.lr, recipe.model_args
        (3, 0.5, {'depth': 2})
    """
    chosen = dataclasses.replace(recipe, per_model={})
    for pattern, settings in recipe.per_model.items():
        where = f"{source}: per_model {pattern!r}"
        changed = chosen
        for key, value in settings.items():
            if key in ("model", "per_model"):
                raise UserError(f"{where}: {key} cannot be set for one model")
            if isinstance(value, Mapping) and isinstance(old := getattr(changed, key, None), dict):
                value = {**old, **value}
            changed = override(changed, key, value, where)
        if fnmatchcase(model, pattern):
            chosen = changed
    return chosen


def override(config: T, key: str, value: Any, source: str = COMMAND_LINE) -> T:
    """Return the configuration with one dotted key changed; ``source`` names in errors who asked for it."""
    mapping = to_mapping(config)
    _set(type(config), mapping, key.split("."), value, source)
    return build(type(config), mapping, source)


def _set(cls: type, mapping: dict[str, Any], path: list[str], value: Any, source: str, prefix: str = "") -> None:
    """Change one setting of a section's mapping; a mapping given for a section is merged into it."""
    head, *rest = path
    known = get_type_hints(cls)
    if head not in known:
        raise UserError(f"{source}: unknown key {prefix + head!r}: {nearest(head, known, 'keys')}")
    if dataclasses.is_dataclass(section := known[head]):
        if not rest and not isinstance(value, Mapping):
            inside = ", ".join(f"{prefix}{head}.{name}" for name in get_type_hints(section))
            raise UserError(f"{source}: {prefix}{head} is a section; its keys: {inside}")
        for inner, item in [(rest, value)] if rest else [([str(name)], item) for name, item in value.items()]:
            _set(section, mapping[head], inner, item, source, f"{prefix}{head}.")  # type: ignore[arg-type]
    elif not rest:
        mapping[head] = value
    elif get_origin(known[head]) is dict:
        place = mapping[head]
        for name in rest[:-1]:
            place[name] = place = dict(inner) if isinstance(inner := place.get(name), Mapping) else {}
        place[rest[-1]] = value
    else:
        raise UserError(f"{source}: {prefix}{head} is one value, it has no key {'.'.join(rest)!r}")


def build(cls: type[T], mapping: Any, source: str, prefix: str = "") -> T:
    """Return the dataclass filled from a mapping, every key and value checked: each wrong one is a line."""
    try:
        return TypeAdapter(cls).validate_python(mapping)
    except ValidationError as error:
        # of several faults of one value the last is told
        found = sorted(error.errors(include_url=False), key=lambda one: _weight(one["type"]))
        lines = dict(_fault(cls, mapping, one, prefix) for one in found)
        misspelt = any(line.startswith("unknown key ") and "did you mean" in line for line in lines.values())
        if misspelt:  # what is missing is there under another name
            lines = {path: line for path, line in lines.items() if not line.endswith(" is missing")}
        raise UserError("\n".join(f"{source}: {line}" for line in lines.values())) from None


def _weight(fault: str) -> int:
    """Return how much a fault says: a wrong length more than a wrong number, that more than being no other type."""
    return 2 * (fault in ("missing", "too_long")) or int(fault in VALUE_FAULTS)


VALUE_FAULTS = ("wanted", "finite_number", "greater_than_equal", "less_than_equal")


def _fault(cls: type, mapping: Any, error: ErrorDetails, prefix: str) -> tuple[str, str]:
    """Return the setting that an error is about, and what is wrong with it."""
    hint, value, path = cls, mapping, prefix.rstrip(".")
    for place in error["loc"]:
        if not dataclasses.is_dataclass(hint):
            break
        path = f"{path}.{place}".lstrip(".")
        known = get_type_hints(hint)
        if place not in known:
            return path, f"unknown key {path}: {nearest(str(place), known, 'keys')}"
        if place not in value:
            return path, f"the key {path} is missing"
        hint, value = known[str(place)], value[place]
    wanted = {
        "wanted": error["msg"],
        "finite_number": "finite",
        "greater_than_equal": f"at least {error.get('ctx', {}).get('ge', 0):.10g}",
        "less_than_equal": f"at most {error.get('ctx', {}).get('le', 0):.10g}",
    }.get(error["type"], _describe(hint))
    return path, f"{path or 'the file'} must be {wanted}, got {value!r}"


def to_mapping(recipe: Any) -> dict[str, Any]:
    """Return a recipe, or a section of one, as plain YAML types: the inverse of :func:`build`."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(recipe))


def check_together(recipe: Recipe, source: str) -> None:
    """Raise where two settings, each valid, exclude one another."""
    if recipe.data.folds is not None and recipe.data.fold > recipe.data.folds:
        raise UserError(f"{source}: data.fold must be at most data.folds, {recipe.data.folds}, got {recipe.data.fold}")
    for key, given in (("class_weights", recipe.class_weights), ("data.sampling", recipe.data.sampling)):
        if given not in (None, "shuffled") and recipe.task != "classification":
            raise UserError(f"{source}: {key} is for classification, not for {recipe.task}: leave it out")
    if recipe.class_weights == () or (isinstance(recipe.class_weights, tuple) and not any(recipe.class_weights)):
        raise UserError(
            f"{source}: class_weights must be numbers, one of them above 0, got {list(recipe.class_weights)}"
        )
    if recipe.mix.on and recipe.batch_size % 2:
        raise UserError(f"{source}: batch_size {recipe.batch_size} is odd, but mix pairs the images: make it even")
    augment = {f"augment.{key}": getattr(recipe.augment, key) for key in ("crop_scale", "crop_ratio")}
    for key, (low, high) in {**augment, "segmentation_augment.scale": recipe.segmentation_augment.scale}.items():
        if not 0 < low <= high:
            raise UserError(f"{source}: {key} must be [low, high] with 0 < low <= high, got [{low}, {high}]")
    longest, sides = recipe.detection_augment.max_size, recipe.detection_augment.short_sides
    if sides and max(sides) > longest:
        raise UserError(
            f"{source}: detection_augment.max_size must be at least {max(sides)}, a short side, got {longest}"
        )
    window, stride = recipe.evaluation.window, recipe.evaluation.stride
    if stride is not None and stride > window:
        raise UserError(
            f"{source}: evaluation.stride must be at most the window, {window}, got {stride}: it would leave gaps"
        )
    lr, lowest, first = recipe.optimizer.lr, recipe.schedule.min_lr, recipe.schedule.warmup_lr
    if recipe.schedule.name in ("cosine", "poly", "tanh") and lowest > lr:
        raise UserError(f"{source}: schedule.min_lr must be at most optimizer.lr, {lr:g}, got {lowest:g}")
    if (recipe.schedule.warmup_steps or recipe.schedule.warmup) and first > lr:
        raise UserError(f"{source}: schedule.warmup_lr must be at most optimizer.lr, {lr:g}, got {first:g}")
    milestones = recipe.schedule.milestones
    if recipe.schedule.name == "multistep" and (not milestones or list(milestones) != sorted(set(milestones))):
        raise UserError(
            f"{source}: schedule.milestones must be rising epochs, such as [30, 60], got {list(milestones)}"
        )
    if recipe.backbone_weights is not None:
        _check_backbone_weights(recipe, source)
    _check_convert(recipe.convert, source)
    for key in ("model_args", "network.args"):
        _check_drops(recipe.model_args if key == "model_args" else recipe.network.args, f"{source}: {key}")


def _check_backbone_weights(recipe: Recipe, source: str) -> None:
    place = f"{source}: backbone_weights must be left out"
    if recipe.task == "classification":
        raise UserError(f"{place} for classification, got {recipe.backbone_weights!r}: a classifier takes weights=")
    other = next((name for name in ("weights", "pretrained") if getattr(recipe, name)), None)
    if other is not None:
        raise UserError(f"{place} where {other} says what the network starts from, got {recipe.backbone_weights!r}")


def checked_convert(to: str, where: Iterable[str | int], operator_args: Mapping[str, Any]) -> ConvertConfig:
    """Return the settings of a conversion that the command line asks for.

    Example:
        >>> checked_convert("acmix", [4], {"num_heads": "fit"}).where
        4
    """
    first, *others = [*where] or [None]
    mapping = {"to": to, "where": [first, *others] if others else first, "operator_args": dict(operator_args)}
    wanted = build(ConvertConfig, mapping, COMMAND_LINE)
    _check_convert(wanted, COMMAND_LINE)
    return wanted


def _check_convert(wanted: ConvertConfig, source: str) -> None:
    if wanted.to is None:
        given = next((key for key in ("where", "operator_args") if getattr(wanted, key) not in (None, {})), None)
        if given is not None:
            value = getattr(wanted, given)
            raise UserError(f"{source}: convert.{given} must be left out where convert.to is not set, got {value!r}")
        return
    try:
        target_of(wanted.to, wanted.operator_args)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: convert.operator_args: {error}") from error


def _check_drops(arguments: Mapping[str, Any], where: str) -> None:
    """Raise for an argument that says how often something is dropped, as ``drop_path_rate``, and is no such part."""
    for key, value in arguments.items():
        if isinstance(value, Mapping):
            _check_drops(value, f"{where}.{key}")
        elif "drop" in key and not all(0 <= number < 1 for number in numbers_in(value)):
            raise UserError(f"{where}.{key} must be at least 0 and less than 1, got {value!r}")


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(args)
    if origin is tuple and get_origin(args[0]) is Literal:
        return f"a list of {', '.join(get_args(args[0]))}"
    if origin is tuple:
        if args[-1] is not Ellipsis:
            return f"a list of {len(args)} numbers"
        return "a list of numbers" if args[0] is float else f"a list of these: {_describe(args[0])}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, "keys with values")

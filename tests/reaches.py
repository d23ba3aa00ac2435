"""Who reaches into whose attributes: what classes know of each other.

    python3 -m tests.reaches FILE...            the ten classes that are reached into most
    python3 -m tests.reaches --private FILE...  attributes that are public, and that only their class uses

The files are taken together.  A reach is a read or a write of an attribute by code outside of the class,
and of those derived from it: `job.job_lock` in JobFile is a reach into Job.  Calls of methods are none, nor
are properties: these are what a class offers.  The options of the command line count as a class, Namespace.

Of what class a value is follows from annotations, constructors and loops.  Where these do not tell, an
attribute that only one class has counts as that class's, and any other does not count.
"""
from __future__ import annotations

import ast
import pathlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.shape import Assigned, assigned, is_self

WORST = 10
OPTIONS = "Namespace"
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
MAPPINGS = {"dict", "Mapping", "OrderedDict", "defaultdict"}
WRAPPERS = {"Awaitable", "Optional", "Final", "ClassVar"}       # what is in them has the attributes


@dataclass
class Class:
    """A class: its bases, the annotations of its attributes (None: there is none), and its methods."""
    bases: list[str] = field(default_factory=list)
    attributes: dict[str, ast.expr | None] = field(default_factory=dict)
    methods: dict[str, ast.expr | None] = field(default_factory=dict)       # with what they return
    properties: set[str] = field(default_factory=set)


Types = Mapping[str, "ast.expr | None"]     # the annotations of names in a function


def last_name(annotation: ast.expr | None) -> str:
    """The class that an annotation names, without modules and without None: 'Job' of `base.Job | None`."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return last_name(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.BinOp):
        return last_name(annotation.left) or last_name(annotation.right)
    if isinstance(annotation, ast.Subscript):
        name = last_name(annotation.value)
        return last_name(annotation.slice) if name in WRAPPERS else name
    if isinstance(annotation, ast.Attribute):
        return annotation.attr
    return annotation.id if isinstance(annotation, ast.Name) else ""


def arguments_of(annotation: ast.expr | None) -> list[ast.expr]:
    """What stands in the brackets of an annotation."""
    if isinstance(annotation, ast.BinOp):
        return arguments_of(annotation.left) or arguments_of(annotation.right)
    if not isinstance(annotation, ast.Subscript):
        return []
    inner = annotation.slice
    return inner.elts if isinstance(inner, ast.Tuple) else [inner]


def element_of(annotation: ast.expr | None) -> ast.expr | None:
    """What a loop through a value of this type meets."""
    arguments = arguments_of(annotation)
    return arguments[0] if arguments else None


class Program:
    """The classes of some files, and the reaches between them."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """texts: of the files, by their names."""
        self.classes: dict[str, Class] = defaultdict(Class)
        self.reaches: dict[str, Counter[str]] = defaultdict(Counter)    # into a class, by attribute
        self.used: dict[str, set[str]] = defaultdict(set)       # names used in no class, or by others than it
        trees = {name: ast.parse(text) for name, text in texts.items()}
        tell_apart(trees)
        for tree in trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self._read_class(node)
        self.owners: dict[str, set[str]] = defaultdict(set)     # of attributes and methods, by their names
        for name, cls in self.classes.items():
            for attribute in (*cls.attributes, *cls.methods):
                self.owners[attribute].add(name)
        for tree in trees.values():
            self._visit(tree, "", {})

    # -- what there is ---------------------------------------------------------------------------------------

    def _read_class(self, node: ast.ClassDef) -> None:
        cls = self.classes[node.name]
        cls.bases = [last_name(base) for base in node.bases]
        for inner in node.body:
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                cls.attributes[inner.target.id] = inner.annotation
            elif isinstance(inner, FUNCTIONS):
                cls.methods[inner.name] = inner.returns
                if any("property" in last_name(decorator) for decorator in inner.decorator_list):
                    cls.properties.add(inner.name)
                self._read_method(cls, inner)

    @staticmethod
    def _read_method(found_in: Class, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """What a method sets on self."""
        given = parameters(function)
        for node in ast.walk(function):
            for target, value in assignments(node):
                if isinstance(target, ast.Attribute) and is_self(target.value):
                    found = node.annotation if isinstance(node, ast.AnnAssign) else None
                    if isinstance(value, ast.Name):
                        found = found or given.get(value.id)
                    elif isinstance(value, ast.Call):
                        found = found or value.func
                    found_in.attributes[target.attr] = found_in.attributes.get(target.attr) or found

    def family(self, name: str) -> Iterator[str]:
        """A class and those that it is derived from."""
        yield name
        for base in self.classes[name].bases if name in self.classes else ():
            yield from self.family(base)

    # -- what is of which class ------------------------------------------------------------------------------

    def type_of(self, value: ast.expr, types: Types, inside: str) -> ast.expr | None:
        """The annotation of a value; None: nobody knows."""
        if isinstance(value, ast.Name):
            if value.id in ("self", "cls") and inside:
                return ast.Name(inside)
            return types.get(value.id) or (ast.Name(OPTIONS) if value.id == "options" else None)
        if isinstance(value, ast.Await):
            return self.type_of(value.value, types, inside)
        if isinstance(value, ast.Attribute):
            found = self._attribute_type(value, types, inside)
            return found or (ast.Name(OPTIONS) if value.attr == "options" else None)
        if isinstance(value, ast.Call):
            return self._returned(value, types, inside)
        if isinstance(value, ast.Subscript):
            found = self.type_of(value.value, types, inside)
            arguments = arguments_of(found)
            return arguments[-1 if last_name(found) in MAPPINGS else 0] if arguments else None
        return None

    def _attribute_type(self, node: ast.Attribute, types: Types, inside: str) -> ast.expr | None:
        for name in self.family(self.owner_of(node, types, inside)):
            cls = self.classes.get(name, Class())
            if node.attr in cls.attributes:
                return cls.attributes[node.attr]
            if node.attr in cls.properties:
                return cls.methods[node.attr]
        return None

    def _returned(self, call: ast.Call, types: Types, inside: str) -> ast.expr | None:
        """What a call returns."""
        function = call.func
        if last_name(function) in self.classes:
            return function
        if isinstance(function, ast.Name) and function.id in ("list", "sorted", "set", "iter") and call.args:
            return self.type_of(call.args[0], types, inside)
        if isinstance(function, ast.Attribute):
            found = self.type_of(function.value, types, inside)
            arguments = arguments_of(found)
            if function.attr in ("values", "get", "pop", "setdefault") and arguments:
                if function.attr == "values":
                    return ast.Subscript(ast.Name("list"), arguments[-1])
                return arguments[-1]
            for name in self.family(last_name(found)):
                if function.attr in self.classes.get(name, Class()).methods:
                    return self.classes[name].methods[function.attr]
        return None

    def owner_of(self, node: ast.Attribute, types: Types, inside: str) -> str:
        """The class that has an attribute; '': it is not known, or none of ours."""
        found = last_name(self.type_of(node.value, types, inside))
        if found == OPTIONS:
            return OPTIONS
        for name in self.family(found) if found else ():
            cls = self.classes.get(name)
            if cls and (node.attr in cls.attributes or node.attr in cls.methods):
                return name
        owners = self.owners.get(node.attr, set())
        return next(iter(owners)) if not found and len(owners) == 1 else ""

    # -- who reaches -----------------------------------------------------------------------------------------

    def _visit(self, node: ast.AST, inside: str, types: Types) -> None:
        """Count the reaches below a node.  inside: the class that it is in; types: of names that it sees."""
        if isinstance(node, ast.ClassDef):
            inside, types = node.name, {}
        elif isinstance(node, FUNCTIONS):
            types = {**types, **parameters(node)}
            types = {**types, **self._locals(node, inside, types)}
        elif isinstance(node, ast.Attribute):
            self._note(node, inside, types)
        for child in ast.iter_child_nodes(node):
            self._visit(child, inside, types)

    def _locals(self, function: ast.AST, inside: str, types: Types) -> dict[str, ast.expr | None]:
        """The annotations of the names that a function assigns."""
        found: dict[str, ast.expr | None] = {}
        for node in ast.walk(function):
            for target, value in assignments(node):
                if isinstance(target, ast.Name) and target.id not in types:
                    annotation = node.annotation if isinstance(node, ast.AnnAssign) else None
                    if not annotation and value:
                        annotation = self.type_of(value, {**types, **found}, inside)
                    found[target.id] = found.get(target.id) or annotation
            if isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
                met = element_of(self.type_of(node.iter, {**types, **found}, inside))
                if isinstance(node.target, ast.Name):
                    found[node.target.id] = found.get(node.target.id) or met
        return found

    def _note(self, node: ast.Attribute, inside: str, types: Types) -> None:
        """Count an attribute that is read or written, if that is a reach."""
        owner = self.owner_of(node, types, inside)
        if owner and owner in self.family(inside):
            return
        for each in [owner] if owner else self.owners.get(node.attr, ()):
            self.used[each].add(node.attr)
        if owner == OPTIONS or (owner and node.attr in self.classes[owner].attributes):
            self.reaches[owner][node.attr] += 1

    def worst(self) -> list[tuple[str, Counter[str]]]:
        """The classes that are reached into, most of all the first."""
        return sorted(self.reaches.items(), key=lambda item: (-sum(item[1].values()), item[0]))

    def could_be_private(self) -> Iterator[tuple[str, str]]:
        """Attributes and methods that are public, and that only their class uses.

        What a base, a derived class, or a Protocol has, too, is called under that name.
        """
        for name, cls in self.classes.items():
            bases = set(self.family(name))
            related = {other for other in self.classes if name in self.family(other)} | bases
            related |= {other for other, found in self.classes.items() if "Protocol" in found.bases}
            shared = {each for other in related - {name} if other in self.classes
                      for each in (*self.classes[other].attributes, *self.classes[other].methods)}
            used = shared.union(*(self.used[other] for other in related))
            is_ours = bases <= self.classes.keys() | {"Enum", "IntEnum", "Exception", "OSError"}
            for attribute in (*cls.attributes, *(cls.methods if is_ours else ())):
                if not attribute.startswith("_") and attribute not in used:
                    yield name, attribute


def tell_apart(trees: Mapping[str, ast.AST]) -> None:
    """Name a class that an earlier file has, too, by its file as well."""
    known: set[str] = set()
    for name, tree in trees.items():
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        new_names = {each: f"{pathlib.Path(name).stem}.{each}" for each in own & known}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                node.name = new_names.get(node.name, node.name)
            elif isinstance(node, ast.Name):
                node.id = new_names.get(node.id, node.id)
        known |= own


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, ast.expr | None]:
    """The annotations of a function's parameters, but for self."""
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return {argument.arg: argument.annotation for argument in every if argument.annotation}


def assignments(node: ast.AST) -> Iterator[Assigned]:
    """What an assignment assigns, also one within an expression or by `with`."""
    if isinstance(node, ast.NamedExpr):
        yield node.target, node.value
    elif isinstance(node, ast.withitem) and node.optional_vars:
        yield node.optional_vars, node.context_expr
    else:
        yield from assigned(node)


def main() -> None:
    names = [word for word in sys.argv[1:] if word != "--private"]
    program = Program({name: pathlib.Path(name).read_text(encoding="utf-8") for name in names})
    if "--private" in sys.argv:
        for name, attribute in program.could_be_private():
            print(f"{name}.{attribute}")
        return
    sizes = {name: sum(attributes.values()) for name, attributes in program.worst()}
    for name, size in list(sizes.items())[:WORST]:
        print(f"{size:5} {name}")
    print(f"{sum(sizes.values()):5} all {len(sizes)}")


if __name__ == "__main__":
    main()

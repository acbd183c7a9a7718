"""Dataclasses that are there at once: of them is made what is imported before a command starts.

The standard library's take a millisecond for each class, as they compile source text, and 10 for the modules they need.
What is made here behaves like them, and ``dataclasses.fields``, ``replace`` and ``asdict`` know it. Inherits nothing.
What is imported then does without ``typing``, which takes 2 ms: type checkers know any ``TYPE_CHECKING``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:

    def dataclass(cls=None, /, *, frozen=False, slots=False, kw_only=False):
        """As ``dataclasses.dataclass``."""
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen, slots=slots, kw_only=kw_only)
        if hasattr(cls, "__post_init__"):
            raise TypeError(f"{cls.__name__} has a __post_init__, which is not for light dataclasses")
        names = tuple(cls.__annotations__)
        defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
        without = {"__dict__", "__weakref__", *(defaults if slots else ())}
        namespace = {name: value for name, value in cls.__dict__.items() if name not in without}
        namespace |= {"_names": names, "_defaults": defaults, "_kw_only": kw_only, "__qualname__": cls.__qualname__}
        namespace["__match_args__"] = () if kw_only else names
        if slots:
            namespace["__slots__"] = names
        return type(cls.__name__, (_Frozen if frozen else _Light,), namespace)

    def field(*, default_factory):
        """As ``dataclasses.field``."""
        return _Made(default_factory)

    def replace(one, /, **changes):
        """As ``dataclasses.replace``."""
        made, put = object.__new__(type(one)), object.__setattr__
        for name in one._names:
            put(made, name, changes.pop(name) if name in changes else getattr(one, name))
        if changes:
            raise TypeError(f"{type(one).__name__}() got unexpected arguments: {', '.join(changes)}")
        return made

    class _Made:
        """A default that is made for each object."""

        def __init__(self, factory):
            self.factory = factory

    def _twin(cls):
        """The standard library's dataclass of the same fields."""
        import dataclasses

        def described(default):
            if isinstance(default, _Made):
                return dataclasses.field(default_factory=default.factory)
            return dataclasses.field(default=default)

        fields = [
            (name, kind, described(cls._defaults.get(name, dataclasses.MISSING)))
            for name, kind in cls.__annotations__.items()
        ]
        frozen = issubclass(cls, _Frozen)
        return dataclasses.make_dataclass(cls.__name__, fields, frozen=frozen, kw_only=cls._kw_only)

    def _signature(cls):
        import inspect

        return inspect.signature(_twin(cls))

    class _WhenAsked:
        """An attribute of a class that is made when somebody asks for it first."""

        def __init__(self, make):
            self._make = make

        def __set_name__(self, _, name):
            self._name = name

        def __get__(self, _, cls):
            made = self._make(cls)
            setattr(cls, self._name, made)
            return made

    class _Light:
        __slots__ = ()
        __hash__ = None
        __dataclass_fields__ = _WhenAsked(lambda cls: _twin(cls).__dataclass_fields__)
        __signature__ = _WhenAsked(_signature)

        def __init__(self, *values, **named):
            cls = type(self)
            if len(values) > (0 if cls._kw_only else len(cls._names)):
                raise TypeError(f"{cls.__name__}() takes fewer positional arguments than {len(values)}")
            put = object.__setattr__
            for name, value in zip(cls._names, values, strict=False):
                put(self, name, value)
            for name in cls._names[len(values) :]:
                if name in named:
                    value = named.pop(name)
                elif name in cls._defaults:
                    value = cls._defaults[name]
                    if type(value) is _Made:
                        value = value.factory()
                else:
                    raise TypeError(f"{cls.__name__}() is missing the argument {name!r}")
                put(self, name, value)
            if named:
                raise TypeError(f"{cls.__name__}() got unexpected arguments or some twice: {', '.join(named)}")

        def __eq__(self, other):
            if type(self) is not type(other):
                return NotImplemented
            return self.__getstate__() == other.__getstate__()

        def __repr__(self):
            said = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names)
            return f"{type(self).__qualname__}({said})"

        def __getstate__(self):
            return tuple(getattr(self, name) for name in self._names)

        def __setstate__(self, state):
            for name, value in zip(self._names, state, strict=True):
                object.__setattr__(self, name, value)

    class _Frozen(_Light):
        __slots__ = ()

        def __hash__(self):
            return hash(self.__getstate__())

        def __setattr__(self, name, value):
            from dataclasses import FrozenInstanceError

            raise FrozenInstanceError(f"cannot assign to field {name!r}")

        def __delattr__(self, name):
            from dataclasses import FrozenInstanceError

            raise FrozenInstanceError(f"cannot delete field {name!r}")

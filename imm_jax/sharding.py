"""Where arrays lie on several devices: one mesh, by the table of ``partition_rules``.

The mesh has three axes. ``data`` repeats the model and splits the batch; ``fsdp`` splits the batch
and every large array too, each gathered when it is used (Zhao et al., arXiv 2304.11277); ``tensor``
splits heads, feed-forward columns and the vocabulary (Shoeybi et al., arXiv 1909.08053).

Nothing is told about the mesh but the parameters: what trains, samples and merges follows them
(:func:`mesh_of`). Inside a compiled program the ``constrain`` functions say how intermediate arrays
lie; without a mesh they do nothing.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imm_jax.errors import InputError, nearest
from imm_jax.partition_rules import Sizes, partition, say_what_is_whole
from imm_jax.tree import map_with_path

PyTree = Any

AXES = ("data", "fsdp", "tensor")
MOST_DEVICES = 2**20  # more than any machine has; a larger number is a slip
LOOPBACK = ("127.", "localhost:", "[::1]:")
REPLICATED = PartitionSpec()
ROWS = "rows"
BATCH = ("data", "fsdp")  # what the rows of a batch are split over


def start_hosts(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins this process with the others of a run, before any device is used.

    What is not given comes from ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and
    ``JAX_PROCESS_ID``. Where nothing is given there is one process, and nothing happens.

    Args:
      coordinator: address and port of process 0, ``"10.0.0.1:1234"``; or ``"auto"``, with which jax
        finds all three itself on TPU pods, under SLURM and under Open MPI.
      processes: how many there are.
      process: the number of this one, from 0.

    Raises:
      InputError: only some of them are given, one is out of range, or the others cannot be reached.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    processes = _number("processes", "JAX_NUM_PROCESSES", processes, 1)
    process = _number("process", "JAX_PROCESS_ID", process, 0)
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    if all(value is None for value in given.values()):
        return
    options: dict[str, Any] = {}
    if coordinator != "auto":
        if missing := [name for name, value in given.items() if value is None]:
            raise InputError(f"hosts: {missing[0]} is missing, expected {', '.join(given)}")
        if not re.fullmatch(r".+:\d+", coordinator):
            raise InputError(f"coordinator: {coordinator!r}, expected ADDRESS:PORT or auto")
        if process >= processes:
            raise InputError(f"process: {process}, expected 0 to {processes - 1}")
        options = {"coordinator_address": coordinator, "cluster_detection_method": "deactivate"}
        options |= {"num_processes": processes, "process_id": process}
        if coordinator.startswith(LOOPBACK):  # jax would listen on every interface
            options["coordinator_bind_address"] = coordinator
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"hosts: the processes cannot be joined ({lines[0][:200]})") from error


def _number(name: str, variable: str, given: int | None, low: int) -> int | None:
    text = str(given) if given is not None else os.environ.get(variable)
    if text is not None and (not text.isdecimal() or int(text) < low):
        raise InputError(f"{name}: {text}, expected a whole number of at least {low}")
    return None if text is None else int(text)


def parse_mesh(text: str) -> dict[str, int]:
    """Reads ``"data=2,fsdp=4"``: the size of every axis, 1 for those that are not named.

    Raises:
      InputError: it is not of this form, names another axis, or is for more than ``MOST_DEVICES``.
    """
    sizes = dict.fromkeys(AXES, 1)
    seen = set()
    for part in text.split(","):
        name, equals, size = (word.strip() for word in part.partition("="))
        if not equals:
            raise InputError(f"mesh: {text!r}, expected AXIS=SIZE,... such as data=2,fsdp=4")
        if name not in sizes:
            hint = nearest(name, AXES)
            raise InputError(
                f"mesh: {text!r} has an axis {name!r}{hint}, expected {', '.join(AXES)}"
            )
        if not size.isdecimal() or len(size) > 7 or int(size) < 1:
            raise InputError(
                f"mesh: {name}={size[:20]}, expected a whole number of at least 1 and at most "
                f"{MOST_DEVICES}"
            )
        if name in seen:
            raise InputError(f"mesh: {text!r} names {name} twice")
        seen.add(name)
        sizes[name] = int(size)
    if (count := prod(sizes.values())) > MOST_DEVICES:
        raise InputError(f"mesh: {text!r} is for {count} devices, expected at most {MOST_DEVICES}")
    return sizes


def make_mesh(text: str | None) -> Mesh | None:
    """The mesh of all devices, of all processes, that ``text`` describes.

    Args:
      text: ``"data=2,fsdp=4"``; axes that are not named have size 1. None is no mesh (one device)
        for one process, and all devices along ``fsdp`` for several.

    Raises:
      InputError: as :func:`parse_mesh`, the sizes do not multiply to the number of devices, or a
        ``tensor`` group would span processes (each samples with a whole model of its own).
    """
    if text is None:
        if jax.process_count() == 1:
            return None
        text = f"fsdp={jax.device_count()}"
    sizes = parse_mesh(text)
    count, found = prod(sizes.values()), jax.device_count()
    if count != found:
        raise InputError(f"mesh: {text!r} is for {count} devices, but there are {found}")
    mesh = jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    for group in mesh.devices.reshape(-1, sizes["tensor"]):
        if len({device.process_index for device in group}) > 1:
            raise InputError(
                f"mesh: {text!r} spreads the tensor axis over processes, expected at most "
                f"tensor={jax.local_device_count()}, the devices of one"
            )
    return mesh


def param_shardings(mesh: Mesh, shapes: PyTree) -> PyTree:
    """The sharding of every array of a tree.

    Args:
      mesh: of :func:`make_mesh`.
      shapes: parameters, or a state that holds some: arrays or ``ShapeDtypeStruct``; or
        ``{path: shape}`` as :func:`imm_jax.models.layout.param_shapes` gives it, of which the
        result's ``get`` is what ``load_model(sharding=...)`` takes.
    """
    found = {}
    is_shape = lambda x: type(x) is tuple and bool(x) and all(isinstance(n, int) for n in x)

    def of(path: str, leaf: Any) -> NamedSharding:
        found[path] = leaf if is_shape(leaf) else np.shape(leaf)
        return NamedSharding(mesh, partition(path, found[path], mesh.shape))

    if isinstance(shapes, dict) and all(is_shape(leaf) for leaf in shapes.values()):
        shardings = {path: of(path, shape) for path, shape in shapes.items()}
    else:
        shardings = map_with_path(of, shapes)
    say_what_is_whole(found, mesh.shape)
    return shardings


def placement(mesh: str | None, shapes: dict[str, tuple[int, ...]]) -> Any:
    """Where a model's parameters go, as ``load_model(sharding=...)`` takes it.

    Args:
      mesh: as :func:`make_mesh` takes it; errors too.
      shapes: ``{path: shape}`` of :func:`imm_jax.models.layout.param_shapes`.
    """
    made = make_mesh(mesh)
    if made is not None:
        return param_shardings(made, shapes).get
    # A named device, as restored weights are on: else the same programs are compiled twice.
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Of an array whose dimension ``axis`` is the rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, _row_axes(mesh.shape)))


def own_part(tree: PyTree) -> PyTree:
    """This process's copy, on its own devices, of arrays that every process has whole."""
    mesh = mesh_of(tree)
    if mesh is None or jax.process_count() == 1:
        return tree
    own = mesh.local_mesh

    def part(x: jax.Array) -> jax.Array:
        pieces = [shard.data for shard in x.addressable_shards]
        where = NamedSharding(own, x.sharding.spec)
        return jax.make_array_from_single_device_arrays(x.shape, where, pieces)

    return jax.tree.map(part, tree)


def place_batch(mesh: Mesh | None, batch: PyTree, axis: int = 0) -> PyTree:
    """``batch`` on the devices: NumPy arrays, the same in all processes, rows in ``axis``."""
    if mesh is None:
        return batch

    def place(x: np.ndarray) -> jax.Array:
        rows = batch_sharding(mesh, axis) if np.ndim(x) > axis else NamedSharding(mesh, REPLICATED)
        return jax.make_array_from_callback(np.shape(x), rows, lambda part: np.asarray(x)[part])

    return jax.tree.map(place, batch)


def batch_shards(sizes: Sizes) -> int:
    """How many parts the rows of a batch are split into."""
    return prod(sizes[axis] for axis in BATCH)


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh that a tree's arrays lie on; None where they are on one device or on the host."""
    for leaf in jax.tree.leaves(tree):
        where = getattr(leaf, "sharding", None)
        if isinstance(where, NamedSharding) and where.mesh.axis_names == AXES:
            return where.mesh if where.mesh.size > 1 else None
    return None


@contextmanager
def on(mesh: Mesh | None) -> Iterator[None]:
    """Inside, compiled programs know the mesh, so that ``constrain`` has an effect."""
    if mesh is None:
        yield
    else:
        with jax.set_mesh(mesh):
            yield


def current_sizes() -> Sizes:
    """The axes of the mesh that surrounds a program; all 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return dict(mesh.shape) if mesh.axis_names == AXES else dict.fromkeys(AXES, 1)


def constrain_params(tree: PyTree, over: tuple[str, ...] = AXES) -> PyTree:
    """``tree`` with every parameter in it split by the table, over these axes alone."""
    sizes = current_sizes()
    if prod(sizes.values()) == 1:
        return tree
    sizes = {axis: size if axis in over else 1 for axis, size in sizes.items()}
    place = jax.lax.with_sharding_constraint
    return map_with_path(lambda path, x: place(x, partition(path, x.shape, sizes)), tree)


def constrain(tree: PyTree, *axes: str | None) -> PyTree:
    """``tree`` with the leading dimensions of every array split as ``axes`` say, the rest whole.

    Args:
      tree: arrays.
      axes: for each dimension ``ROWS`` (the batch axes), ``"tensor"``, or None for whole. A
        dimension that does not divide is whole.
    """
    sizes = current_sizes()
    if prod(sizes.values()) == 1:
        return tree

    def place(x: jax.Array) -> jax.Array:
        spec = []
        for size, axis in zip(x.shape, axes):
            parts = batch_shards(sizes) if axis == ROWS else sizes.get(axis, 1)
            names = _row_axes(sizes) if axis == ROWS else axis
            spec.append(names if parts > 1 and size % parts == 0 else None)
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))

    return jax.tree.map(place, tree)


def _row_axes(sizes: Sizes) -> tuple[str, ...] | None:
    return tuple(name for name in BATCH if sizes[name] > 1) or None

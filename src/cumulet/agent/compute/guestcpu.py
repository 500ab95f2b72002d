"""A guest's processor: model, topology, NUMA cells, and what this host refuses to promise. Pure functions."""

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from cumulet.agent.compute.devices import el
from cumulet.agent.contract import ServerSpec
from cumulet.agent.errors import DriverError

_SMALL_PAGES = {"", "small", "any", "4", "4KB", "4096"}


def refuse_unsupported(spec: ServerSpec) -> None:
    """Raises for what the server asks of the host's processors and memory and would silently not get."""
    wanted = {**_of_image(spec.image_properties), **spec.extra_specs}
    if wanted.get("hw:cpu_policy", "shared") != "shared":
        _refuse(f"hw:cpu_policy={wanted['hw:cpu_policy']}: CPUs of servers are shared on this host")
    if wanted.get("hw:cpu_thread_policy", "prefer") != "prefer":
        _refuse("hw:cpu_thread_policy: CPUs of servers are shared on this host")
    if wanted.get("hw:mem_page_size", "") not in _SMALL_PAGES:
        _refuse(f"hw:mem_page_size={wanted['hw:mem_page_size']}: this host offers no huge pages")
    for name in ("hw:cpu_realtime", "hw:mem_encryption", "hw:locked_memory"):
        if wanted.get(name, "").lower() in ("yes", "true", "1"):
            _refuse(f"{name}: this host does not offer it")
    for name in ("pci_passthrough:alias", "hw:vtpm", "hw:tpm_version", "resources:VGPU", "hw:pmem"):
        if wanted.get(name):
            _refuse(f"{name}: this host does not offer it")


def _of_image(properties: Mapping[str, str]) -> dict[str, str]:
    """``hw_cpu_policy`` of an image means what ``hw:cpu_policy`` of a flavor means; the flavor's word counts more."""
    return {"hw:" + name.removeprefix("hw_"): value for name, value in properties.items() if name.startswith("hw_")}


def _refuse(why: str) -> None:
    raise DriverError("unsupported", why)


def cpu(domain: Element, spec: ServerSpec, virt_type: str) -> None:
    if virt_type == "kvm":
        element = el(domain, "cpu", mode="host-model", check="partial")
    else:
        # the plainest model boots fastest; without RDRAND a guest waits 1.5 s for entropy
        element = el(domain, "cpu", mode="custom", match="exact", check="none")
        el(element, "model", "qemu64", fallback="forbid")
        el(element, "feature", policy="require", name="rdrand")
    sockets, cores, threads = topology(spec)
    el(element, "topology", sockets=sockets, cores=cores, threads=threads)
    _numa(element, spec)


def topology(spec: ServerSpec) -> tuple[int, int, int]:
    """Sockets, cores, threads whose product is the number of CPUs; sockets only unless flavor or image say else."""
    wanted = {**_of_image(spec.image_properties), **spec.extra_specs}

    def number(name: str, default: int) -> int:
        text = wanted.get(f"hw:cpu_{name}", "")
        if not text:
            return default
        if not text.isdigit() or int(text) < 1:
            _refuse(f"hw:cpu_{name} must be a number above 0, not {text!r}")
        return int(text)

    threads = number("threads", 1)
    if wanted.get("hw:cpu_sockets"):
        sockets = number("sockets", 1)
        cores = number("cores", max(1, spec.vcpus // (sockets * threads)))
    else:
        cores = number("cores", 1)
        if not wanted.get("hw:cpu_cores") and wanted.get("hw:cpu_max_sockets"):
            sockets = min(number("max_sockets", spec.vcpus), spec.vcpus)
            while spec.vcpus % (sockets * threads):
                sockets -= 1
            cores = spec.vcpus // (sockets * threads)
        sockets = max(1, spec.vcpus // (cores * threads))
    if sockets * cores * threads != spec.vcpus:
        _refuse(f"{spec.vcpus} CPUs are not {sockets} sockets x {cores} cores x {threads} threads")
    return sockets, cores, threads


def _numa(element: Element, spec: ServerSpec) -> None:
    text = spec.extra_specs.get("hw:numa_nodes") or spec.image_properties.get("hw_numa_nodes")
    if not text:
        return
    if not text.isdigit() or int(text) < 1:
        _refuse(f"hw:numa_nodes must be a number above 0, not {text!r}")
    nodes = int(text)
    if spec.vcpus % nodes or spec.memory_mb % nodes:
        _refuse(f"{spec.vcpus} CPUs and {spec.memory_mb} MiB do not divide into {nodes} NUMA nodes")
    numa, each = el(element, "numa"), spec.vcpus // nodes
    for n in range(nodes):
        cpus = f"{n * each}-{n * each + each - 1}" if each > 1 else str(n)
        el(numa, "cell", id=n, cpus=cpus, memory=spec.memory_mb * 1024 // nodes, unit="KiB")

"""The machines that there is a file for, and what each package format calls them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A kind of machine, by the name that `uname -m` gives it."""

    name: str
    debian: str

    @property
    def wheel_tags(self) -> tuple[str, ...]:
        """Platforms for which pip takes the wheel: the file asks for no C library newer than these, or for none."""
        return f"manylinux_2_17_{self.name}", f"musllinux_1_1_{self.name}"


MACHINES = {machine.name: machine for machine in (Machine("x86_64", "amd64"), Machine("aarch64", "arm64"))}

"""The command of a runtime behind programs like env, and its flags."""

from __future__ import annotations

import re

import pytest

from kata_node.runtime.containerd.command_line import config_option
from kata_node.runtime.wrappers import Command, wrapped_command

CONTAINERD = re.compile("containerd")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        pytest.param("/usr/bin/containerd -c /x", "/usr/bin/containerd -c /x", id="none"),
        pytest.param("/usr/bin/env A=b P=/x containerd -c /x", "containerd -c /x", id="env"),
        pytest.param("/usr/bin/env A=/opt/containerd containerd", "containerd", id="a-value-with-that-name"),
        pytest.param("env -u containerd containerd -c /x", "containerd -c /x", id="an-option-with-that-name"),
        pytest.param("env -iu A --unset B -- containerd -c /x", "containerd -c /x", id="end-of-options"),
        pytest.param("env - A=b containerd", "containerd", id="an-empty-environment"),
        pytest.param("env -a containerd /usr/bin/other -c /x", None, id="only-the-name-of-the-process"),
        pytest.param("env --argv0=c containerd -c /x", "containerd -c /x", id="another-name"),
        pytest.param("env -S containerd", None, id="split-by-env"),
        pytest.param("/usr/bin/nice -n 5 ionice -c2 containerd -c /x", "containerd -c /x", id="two"),
        pytest.param("nice -5 ionice -c 2 -n 0 -t containerd", "containerd", id="values-in-the-next-word"),
        pytest.param("nice --adjustment 5 containerd", "containerd", id="value-of-a-long-option"),
        pytest.param("choom -n -500 -- containerd", "containerd", id="negative-value"),
        pytest.param("taskset -c 0-3 containerd -c /x", "containerd -c /x", id="taskset"),
        pytest.param("chrt --fifo 50 containerd", "containerd", id="chrt"),
        pytest.param("numactl -C 0-3 --membind 0 -l containerd", "containerd", id="numactl"),
        pytest.param("systemd-cat -t containerd -p info containerd -c /x", "containerd -c /x", id="cat"),
        pytest.param("setarch x86_64 -R containerd", "containerd", id="setarch"),
        pytest.param("setpriv --reuid 0 --nnp containerd", "containerd", id="setpriv"),
        pytest.param("tini -s -e 143 -- containerd", "containerd", id="tini"),
        pytest.param("nice containerd-stress", None, id="another-program"),
        pytest.param("nice", None, id="no-program"),
        pytest.param("/bin/sh -c containerd", None, id="a-shell"),
        pytest.param("/usr/sbin/chroot /srv containerd -c /x", None, id="another-root"),
        pytest.param("/usr/local/bin/start-runtime containerd", None, id="unknown-script"),
    ],
)
def test_programs_that_only_run_another_one_are_left_out(line: str, command: str | None) -> None:
    found = wrapped_command(Command(tuple(line.split()), "/"), CONTAINERD)
    assert (" ".join(found.argv) if found else None) == command


@pytest.mark.parametrize(
    ("line", "directory", "environment"),
    [
        pytest.param("env -C /srv containerd", "/srv", {"A": "1", "B": "2"}, id="directory"),
        pytest.param("env --chdir=x containerd", "/base/x", {"A": "1", "B": "2"}, id="relative-directory"),
        pytest.param("env -uA B=3 containerd", "/base", {"B": "3"}, id="unset-and-set"),
        pytest.param("env -i nice env C=4 containerd", "/base", {"C": "4"}, id="twice"),
    ],
)
def test_env_sets_the_directory_and_the_variables(
    line: str, directory: str, environment: dict[str, str]
) -> None:
    found = wrapped_command(Command(tuple(line.split()), "/base", {"A": "1", "B": "2"}), CONTAINERD)
    assert found is not None
    assert (found.working_directory, found.environment) == (directory, environment)


@pytest.mark.parametrize(
    ("line", "option"),
    [
        pytest.param("-c /x", "/x", id="short"),
        pytest.param("--config /x", "/x", id="long"),
        pytest.param("-c=/x", "/x", id="short-with-equals"),
        pytest.param("--config=/x=y", "/x=y", id="long-with-equals"),
        pytest.param("-config /x", "/x", id="long-with-one-dash"),
        pytest.param("-c /a -c /x", "/x", id="the-last-one"),
        pytest.param("--log-level -c -c /x", "/x", id="a-value-that-looks-like-a-flag"),
        pytest.param("-cX", None, id="no-value-in-the-same-word"),
        pytest.param("-- -c /x", None, id="behind-the-end-of-the-flags"),
        pytest.param("-l debug run -c /x", None, id="behind-the-first-word"),
        pytest.param("--new-flag value -c /x", "/x", id="behind-an-unknown-flag"),
        pytest.param("-c", "", id="without-value"),
        pytest.param("", None, id="none"),
    ],
)
def test_the_main_file_is_found_as_containerd_finds_it(line: str, option: str | None) -> None:
    assert config_option(["containerd", *line.split()]) == option

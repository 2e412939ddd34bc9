# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from hotreload.errors import InputError
from hotreload.survey.livepatch_selftests import Place

PLACE = Place("a.c", '"nodev"', '"nodev of reload-%d"', "/proc/filesystems")


def test_an_edit_carries_its_number() -> None:
    assert PLACE.edited('seq_puts(m, "nodev");', 7) == 'seq_puts(m, "nodev of reload-7");'


def test_a_kernel_with_another_text_is_refused() -> None:
    with pytest.raises(InputError, match="2 times"):
        PLACE.edited('"nodev" "nodev"', 7)

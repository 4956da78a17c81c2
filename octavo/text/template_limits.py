"""What a chat template may take: it is a program from elsewhere, and may loop, grow or nest without an end."""

from __future__ import annotations

#: seconds of a processor; the longest conversations take a tenth of it
MAX_CPU_S = 1.0
#: seconds by the clock, on a machine that is busy
MAX_WALL_S = 20.0
#: of the whole process, in which an interpreter takes some tens of megabytes
MAX_MEMORY_BYTES = 2**30
#: characters of the text that it makes
MAX_TEXT_LEN = 2**25

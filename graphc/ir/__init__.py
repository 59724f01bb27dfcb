"""What a program is."""

from graphc.ir import text as text  # so that graphs print

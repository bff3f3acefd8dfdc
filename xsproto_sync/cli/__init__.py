"""The command ``xsproto``, one file for each family of commands. It needs the extra ``cli``.

=================  ================================================================
`main`             the entry point, and the group that all commands are added to
`nodes`            ``read``, ``write``, ``ls``, ``list``, ``exists``, ``rm``, ``chmod``
`watching`         ``watch``, ``wait``
`trees`            ``dump``, ``load``
`serving`          ``serve``
`stdio`            ``stdio``
`demo`             ``demo``
`completion`       ``completion``
`options`          options and argument types that several commands share
`output`           values and paths as text and as JSON
`errors`           exit statuses, and errors in an operator's words
=================  ================================================================

A command of a new family gets a file here and a line in `main`. The package is internal: programs
use `xsproto_sync.Client`, and ``docs/reference/command-line.md`` describes the commands.
"""

__all__: list[str] = []

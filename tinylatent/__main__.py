"""`python -m tinylatent` is the command `tinylatent`."""

from tinylatent.cli.main import main

raise SystemExit(main())

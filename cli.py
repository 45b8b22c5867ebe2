from bayeslora.cli import main

raise SystemExit(main())

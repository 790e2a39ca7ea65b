"""The OpenAPI schema of this model, identical to the one that Cog's build puts into the image.

The web form is drawn from it and the server validates requests with it; a server that is started by hand needs it in
`.cog/openapi_schema.json`.

    python scripts/schema.py            prints the schema
    python scripts/schema.py --write    writes it to .cog/openapi_schema.json
"""

import sys

from e5_cog.openapi import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""This model's OpenAPI schema, identical to the one that Cog's build writes into the image.

Web forms are generated from it, and Cog's server validates requests with it. scripts/serve.py writes it by itself.

    python scripts/schema.py            prints the schema
    python scripts/schema.py --write    writes it to .cog/openapi_schema.json
"""

import sys

from e5_cog.openapi import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

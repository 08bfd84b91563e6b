"""What tests of pages share."""

import json
import re


def numbers_in(html):
    """Return the numbers in a page, as its script reads them."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(text)

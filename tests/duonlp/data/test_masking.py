"""Secrets and e-mail addresses are masked anywhere in a text; code that resembles them is not."""

import random
import re
import string

import pytest

from duonlp.data.cleaning.masking import ANCHORS, MaskingConfig, mask

ALL = MaskingConfig()
draw = random.Random(0)


def token(length, letters=string.ascii_letters + string.digits):
    """Return random characters with a digit; generated so that secret scanners do not flag this file."""
    return "7" + "".join(draw.choice(letters) for _ in range(length - 1))


HEX, LOWER, UPPER = "0123456789abcdef", string.ascii_lowercase + string.digits, string.ascii_uppercase + string.digits
SECRETS = {
    "AWS key id": "AKIA" + token(16, UPPER),
    "AWS key id of letters alone": "AKIA" + "QWERTYUIOPASDFGH",
    "GitHub": "ghp_" + token(36),
    "GitLab": "glpat-" + token(20),
    "GitLab runner": "GR1348941" + token(20),
    "Slack": f"xoxb-{token(12, '0123456789')}-{token(24)}",
    "Slack webhook": f"https://hooks.slack.com/services/T{token(8)}/B{token(8)}/{token(24)}",
    "Stripe": "sk_live_" + token(24),
    "SendGrid": f"SG.{token(22)}.{token(43)}",
    "OpenAI": f"sk-{token(20)}T3BlbkFJ{token(20)}",
    "PyPI": "pypi-AgEIcHlwaS5vcmc" + token(80),
    "Mailchimp": token(32, HEX) + "-us12",
    "Twilio": "AC" + token(32, HEX),
    "Square": "sq0csp-" + token(43),
    "Telegram": f"{token(9, '0123456789')}:AA{token(33)}",
    "Discord": f"M{token(23)}.{token(6)}.{token(27)}",
    "Azure": "AccountKey=" + token(86) + "==",
    "web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + token(43),
    "Artifactory": "AKC" + token(30),
    "Artifactory password": "APA" + token(9),
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize(
    "before", ["", "é = 'x'\nimport os\n", "x = 1  # ", "İ\n"], ids=["first", "later", "in a line", "İ"]
)
def test_secrets_are_masked_wherever_they_are(kind, before):
    secret = SECRETS[kind]
    text = f'{before}value = "{secret}"\nother = 1\n'
    masked, counts = mask(text, ALL)
    assert masked == f'{before}value = "<KEY>"\nother = 1\n' and counts == {"key": 1}
    assert mask(text, MaskingConfig(secrets=False)) == (text, {})
    # Twice on a line, then again: a match must not hide later ones.
    masked, counts = mask(f'("{secret}", "{secret}")\nx\n"{secret}"\n', ALL)
    assert masked == '("<KEY>", "<KEY>")\nx\n"<KEY>"\n' and counts == {"key": 3}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('aws_secret_access_key = "{}"', token(39, string.ascii_letters + string.digits + "+/") + "/"),
        ("ibm_cloud_api_key: '{}'", token(44)),
        ("IBM_COS_HMAC_SECRET_ACCESS_KEY = {}", token(48, HEX)),
        ("cloudant_password = '{}'", token(64, HEX)),
        ('CL_APIKEY="{}"', "abcdefghijklmnopqrstuvwx"),
        ("softlayer_api_key = '{}'", token(64, LOWER)),
        ("//registry.npmjs.org/:_authToken={}", "npm_" + token(36)),
    ],
)
def test_the_name_a_secret_is_assigned_to_is_kept(line, value):
    masked, counts = mask(f"x = 1\n{line.format(value)}\n", ALL)
    assert masked == f"x = 1\n{line.format('<KEY>')}\n" and counts == {"key": 1}


def test_passwords_in_addresses():
    text = "a = 'postgres://admin:hunter2@db.example.org:5432/x'\nb = f'https://{user}:{password}@{host}'\n"
    masked, counts = mask(text, ALL)
    assert masked == text.replace("hunter2", "<PASSWORD>") and counts == {"password": 1}


def test_private_keys_are_masked_with_their_body():
    body = "\n".join(token(64) for _ in range(5))
    text = f'KEY = """-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----"""\n'
    masked, counts = mask(text, ALL)
    assert masked == 'KEY = """-----BEGIN RSA PRIVATE KEY-----<KEY>-----END RSA PRIVATE KEY-----"""\n'
    assert counts == {"key": 1}
    looks = 'if line == "-----BEGIN PRIVATE KEY-----":\n    end = "-----END PRIVATE KEY-----"\n'
    assert mask(looks, ALL) == (looks, {})


@pytest.mark.parametrize(
    "address",
    [
        "jo@example.org",
        "j.o-n+tag@mail.example.co.uk",
        "JO@EXAMPLE.ORG",
        "x_1@a-b.io",
        "jo@1and1.de",
        "a@xn--bcher-kva.ch",
    ],
)
@pytest.mark.parametrize(
    "frame", ["{}", "<{}>", "('{}', 1)", "mail {}.", "mailto:{}", "a,{},b", '"{}"\n\n@decorator\n']
)
def test_addresses_are_masked(address, frame):
    assert mask(frame.format(address), ALL) == (frame.format("<EMAIL>"), {"email": 1})
    assert mask(frame.format(address), MaskingConfig(emails=False)) == (frame.format(address), {})


@pytest.mark.parametrize(
    "text",
    [
        "@app.route('/')\n@functools.wraps(f)\n",
        "y = x@w.transpose(0, 1) + x@self.weight + a@b.T + a@w.shape[0]",
        "git@github.com:owner/name.git",
        "logo@2x.png icon@2x.svg",
        "python@3.11 left-pad@1.3.0 name@v2",
        "user@host user@localhost @ a@ @b.c",
        "AAACCATCTCTACCGGTTCGCTTTCACTGGATATCGCGCTTGGGGCAGGTGGTCTGCCGATGGGCCGACCATAKIAGATCGCCGCA",
        "sha1 = 'da39a3ee5e6b4b0d3255bfef95601890afd80709'",
        "password = getpass(); api_key = os.environ['API_KEY']; token = 'abc'",
        "def test_that_a_very_long_name_1_of_a_function_stays_as_it_is(): pass",
    ],
)
def test_code_that_resembles_secrets_is_kept(text):
    assert mask(text, ALL) == (text, {})


def test_masks_are_not_masked_again():
    lines = [*SECRETS.values(), "jo@example.org", "ftp://jo:hunter2@example.org/x", "Jo <jo@example.org>"]
    once, counts = mask("\n".join(f'x = "{line}"' for line in lines), ALL)
    assert mask(once, ALL) == (once, {}) and sum(counts.values()) == len(lines)


def test_every_detector_of_the_library_has_anchors():
    """Detectors without anchors work too, but slowly, on whole texts; add anchors for new ones."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector

    from duonlp.data.cleaning.masking import NOT_USED

    detectors = get_mapping_from_secret_type_to_class().values()
    names = {detector.__name__ for detector in detectors if issubclass(detector, RegexBasedDetector)}
    assert names == set(ANCHORS) | set(NOT_USED)


def test_anchors_miss_no_match_of_the_patterns():
    """Everything the patterns match without anchors, on lines full of secrets, is masked."""
    from duonlp.data.cleaning.masking import _load_patterns

    lines = [f'x{i} = "{secret}"' for i, secret in enumerate(SECRETS.values())]
    masked = mask("\n".join(lines), ALL)[0].split("\n")
    for patterns in _load_patterns():
        for pattern in patterns:
            for line, after in zip(lines, masked):
                assert not pattern.regex.search(line) or "<KEY>" in after
    assert all(re.fullmatch(r'x\d+ = "<KEY>"', line) for line in masked)

"""What a policy of R1's pipeline might be worth: an entry of stages.json."""

SHARES = "easy", "hard", "majority", "pass", "format", "language", "win_rate"


def entry(name, text="x", n=128):
    return {"stage": name, **dict.fromkeys(SHARES, 0.9876), "length": 12345.6,
            "seconds": 123456.0, "problems": {"easy": 54, "hard": n, "general": n},
            "problem": f"1+1={text}", "example": text}

"""The phase files of the demo: what is in them, and how to tell a whole one from a broken one.

A document names its run at its head and at its tail and carries a count of its symbols and a checksum
over them, so that a mix of two runs is seen even where it happens to be valid JSON.
"""

import zlib

PHASES = (
    "stock_universe",
    "technical_analysis",
    "fundamental_analysis",
    "sentiment_analysis",
    "final_rankings",
)

FIELDS = {
    "stock_universe": ("price_cents", "volume", "market_cap_millions", "listed_on_day"),
    "technical_analysis": (
        "sma_20", "sma_50", "sma_200", "ema_12", "ema_26", "macd", "rsi_14", "atr_14",
        "bollinger_upper", "bollinger_lower", "volume_ratio", "momentum"),
    "fundamental_analysis": (
        "pe_ratio", "pb_ratio", "debt_to_equity", "current_ratio", "gross_margin", "net_margin",
        "revenue_growth", "earnings_growth", "dividend_yield"),
    "sentiment_analysis": ("news_score", "news_count", "social_score", "social_count", "analyst_score"),
    "final_rankings": ("rank", "technical_score", "fundamental_score", "sentiment_score", "total_score"),
}


def symbol(number):
    """AAAA, AAAB, ...: ticker symbols in plenty."""
    letters = ""
    for _ in range(4):
        number, letter = divmod(number, 26)
        letters = chr(65 + letter) + letters
    return letters


def checksum(symbols):
    """A checksum over the symbols and all of their figures."""
    text = ";".join(f"{name}:{','.join(map(str, figures.values()))}" for name, figures in symbols.items())
    return zlib.crc32(text.encode())


def document(run, phase, symbols):
    """A phase's complete result."""
    return {
        "run": run,
        "phase": phase,
        "count": len(symbols),
        "checksum": checksum(symbols),
        "symbols": symbols,
        "run_at_end": run,
    }


def is_whole(doc, phase):
    """Whether a document that parsed is one complete version: one run's result, all of it."""
    try:
        return (
            doc["run"] == doc["run_at_end"]
            and doc["phase"] == phase
            and doc["count"] == len(doc["symbols"])
            and doc["checksum"] == checksum(doc["symbols"]))
    except (KeyError, TypeError, AttributeError):
        return False

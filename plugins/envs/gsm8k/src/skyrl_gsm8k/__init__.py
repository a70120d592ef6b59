"""Grade-school word problems (GSM8K), judged by the number after "####"."""

"""Generates with vLLM, in a server process of its own.

| module | runs in | does |
|---|---|---|
| `plugin` | the run | answers the hook |
| `engine` | the run | the kernel's engine protocol in vLLM's requests |
| `client` | the run | HTTP under deadlines, errors that name the server |
| `server` | the run | starts the server, waits for it, ends it |
| `staging` | the run | new weights as files, checked before they are offered |
| `guard` | a process between | ends the server when the run ends, however it ends |
| `inside`, `transfer` | vLLM's processes | reads those files into the model |

The package imports neither torch nor vLLM by itself.
"""

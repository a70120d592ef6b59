"""Generates with vLLM, in a server process of its own.

| module | runs in | does |
|---|---|---|
| `plugin` | the run | answers the hook |
| `engine` | the run | the kernel's engine protocol in vLLM's requests |
| `fleet` | the run | all servers of one engine at once |
| `client` | the run | HTTP under deadlines, errors that name the server |
| `server` | the run | starts a server, waits for it, ends it |
| `updates` | the run | new weights as a transaction: what may come, and what holds afterwards |
| `transports` | the run | ways for weights to get into vLLM's processes |
| `guard` | a process between | ends the server when the run ends, however it ends |
| `inside` | vLLM's processes | receives weights and loads them into the model |

The package imports neither torch nor vLLM by itself.
"""

# SPDX-License-Identifier: Apache-2.0
"""What stands between a client and the engine: one pure ASGI class a file, in the order of `aerie.server.app`."""

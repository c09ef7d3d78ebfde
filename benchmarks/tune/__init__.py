# SPDX-License-Identifier: Apache-2.0
"""`aerie tune`: the number of drafted tokens that is fastest here, by the number of requests, measured and proven."""

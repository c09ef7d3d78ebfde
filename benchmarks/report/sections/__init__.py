# SPDX-License-Identifier: Apache-2.0
"""What a report says of one result, a module for each kind of measurement."""

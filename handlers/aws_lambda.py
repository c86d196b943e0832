"""The store as an AWS Lambda function: `handlers.aws_lambda.handler`.

It answers requests over HTTP (API Gateway with either payload format, a Function URL, an
Application Load Balancer), appends batches from SQS, and takes direct calls. Which of these reach
it, and from whom, is decided by what is attached to the function; see docs/deploy-lambda.md.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module

from pgcontext import ContextStore
from pgcontext.aws import Function

# Made once for each environment, so a setting that cannot be used stops the deployment's first
# start instead of each request.
handler = Function(ContextStore.from_env())

if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand") != "on-demand":
    # With provisioned concurrency and SnapStart nobody waits for what is loaded now.
    handler.prepare()

with suppress(ImportError):  # only runtimes that can take snapshots have it
    import_module("snapshot_restore_py").register_before_snapshot(handler.close)

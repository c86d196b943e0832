"""Running on AWS Lambda: events in, calls of the store or the HTTP application, answers out.

    from pgcontext import ContextStore
    from pgcontext.aws import Function

    handler = Function(ContextStore.from_env())

One handler takes requests over HTTP (API Gateway with either payload format, Function URLs,
Application Load Balancers), batches from SQS, and direct calls.
"""

from pgcontext.aws.function import Function

__all__ = ["Function"]

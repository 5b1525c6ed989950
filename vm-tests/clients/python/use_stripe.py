"""The official Stripe SDK, with the certificate bundle it brings along."""
import sys

import stripe

client = stripe.StripeClient("sk_test_placeholder")

match sys.argv[1]:
    case "read":
        print(client.v1.customers.retrieve("cus_1").description)
    case "write":
        try:
            print(client.v1.customers.create({"description": "juniper"}).description)
        except stripe.StripeError as error:
            print(error.http_status, error.json_body)

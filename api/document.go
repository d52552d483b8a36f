package api

import _ "embed"

// Document is the OpenAPI description of the API.
//
//go:embed openapi.yaml
var Document []byte

// Package gen holds the Go code of the guest agent's wire contract, made from the schemas in
// api/proto. Nothing below it is written by hand, and making it again changes nothing.
package gen

//go:generate ./generate.sh

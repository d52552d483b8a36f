package api

// AuditKey is a key that signs the audit log.
type AuditKey struct {
	KeyID     string `json:"keyID"`
	PublicKey string `json:"publicKey"` // Ed25519, base64
	Own       bool   `json:"own"`       // it is that of the replica that answers
}

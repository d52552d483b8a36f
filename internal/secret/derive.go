package secret

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
)

// Derive makes a key of 32 bytes for another purpose, so that servers that share the key file agree on it without another one.
func (s *Sealer) Derive(purpose string) ([]byte, error) {
	key, err := hkdf.Expand(sha256.New, s.root, "tartarus "+purpose, keySize)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	return key, nil
}

package daemon

import (
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/tartarus-sandbox/tartarus/internal/image/oci"
)

// ImageKeys reads the keys by which container images may be signed.
func (c Config) ImageKeys() ([]oci.Key, error) {
	keys, _, err := c.signers()
	return keys, err
}

// signers are the keys by which images may be signed, and their names by the keys' ids.
func (c Config) signers() (keys []oci.Key, names map[string]string, err error) {
	names = map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(c.SignatureKeys)) {
		text, err := os.ReadFile(c.SignatureKeys[name])
		if err != nil {
			return nil, nil, fmt.Errorf("read signatureKeys %s: %w", name, err)
		}
		k, err := oci.ParseKey(text)
		if err != nil {
			return nil, nil, fmt.Errorf("read signatureKeys %s: %s: %w", name, c.SignatureKeys[name], err)
		}
		keys = append(keys, k)
		names[k.ID] = name
	}
	return keys, names, nil
}

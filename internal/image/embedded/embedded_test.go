package embedded

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
)

// TestPrograms expects a program with its digest, or a sentence that says how to get it.
func TestPrograms(t *testing.T) {
	for name, c := range map[string]struct {
		program func() ([]byte, error)
		digest  func() (string, error)
	}{"tartarus-guest": {Guest, GuestDigest}, "tartarus-tiny": {Tiny, TinyDigest}} {
		b, err := c.program()
		digest, digestErr := c.digest()
		if err != nil {
			for _, err := range []error{err, digestErr} {
				if !tartarus.Is(err, tartarus.Unsupported) || !strings.Contains(err.Error(), name+" is not in this build") || !strings.Contains(err.Error(), "make build") {
					t.Errorf("%s: %v", name, err)
				}
			}
			continue
		}
		sum := sha256.Sum256(b)
		if digestErr != nil || digest != hex.EncodeToString(sum[:]) {
			t.Errorf("%s: the digest beside it is %q, %v", name, digest, digestErr)
		}
		if !strings.HasPrefix(string(b), "\x7fELF") {
			t.Errorf("%s is no program", name)
		}
	}
}

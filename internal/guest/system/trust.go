package system

import (
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// bundles are the files in which distributions keep what they trust: Debian's and Alpine's, Fedora's, and what some programs look for.
var bundles = []string{"etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt", "etc/ssl/ca-bundle.pem", "etc/ssl/cert.pem"}

// extraTrust holds our certificates alone.
const extraTrust = "run/e2b/ca.pem"

// TrustVariables tell programs that bring certificates of their own where the system's are. What a sandbox sets itself stays.
var TrustVariables = map[string]string{
	"NODE_EXTRA_CA_CERTS": "/" + extraTrust,
	"SSL_CERT_FILE":       "/" + bundles[0],
	"REQUESTS_CA_BUNDLE":  "/" + bundles[0],
	"CURL_CA_BUNDLE":      "/" + bundles[0],
}

const (
	trustBegin = "# tartarus begin\n"
	trustEnd   = "# tartarus end\n"
	maxTrust   = 64 << 10
)

func checkTrust(text string) error {
	if len(text) > maxTrust {
		return tartarus.Errorf(tartarus.TooLarge, "caBundle may have %d bytes", maxTrust)
	}
	for rest := []byte(text); len(strings.TrimSpace(string(rest))) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return tartarus.Errorf(tartarus.Invalid, "caBundle is not certificates in PEM")
		}
	}
	return nil
}

// writeTrust adds certificates to every bundle that is there; the first one is made where it is missing.
func (g *Guest) writeTrust(text string) error {
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	errs := []error{g.write(extraTrust, text, 0o644)}
	for i, name := range bundles {
		st, err := os.Lstat(filepath.Join(g.Root, name))
		if i > 0 && (errors.Is(err, fs.ErrNotExist) || err == nil && st.Mode()&fs.ModeSymlink != 0) {
			continue // a link leads to one of the others
		}
		errs = append(errs, g.edit(name, 0o644, func(old []byte) []byte {
			kept := string(old)
			if before, rest, ok := strings.Cut(kept, trustBegin); ok {
				_, after, _ := strings.Cut(rest, trustEnd)
				kept = before + after
			}
			if kept != "" && !strings.HasSuffix(kept, "\n") {
				kept += "\n"
			}
			return []byte(kept + trustBegin + text + trustEnd)
		}))
	}
	return errors.Join(errs...)
}

package webgate

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A certificate of the authority is believed by Go and, where it is there, by OpenSSL, which most programs in sandboxes use.
func TestLeafIsBelieved(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ca.pem")
	a, err := LoadAuthority(file)
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadAuthority(file)
	if err != nil || !bytes.Equal(a.Certificate(), again.Certificate()) {
		t.Fatalf("another authority after a restart: %v", err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the key may be read by others: %v, %v", st.Mode(), err)
	}
	for _, name := range []string{"api.example", strings.Repeat("a23456789.", 24) + "example"} { // longer than a common name may be
		leaf, err := a.leaf(name, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(a.cert)
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Error(err)
		}
		if bytes.Equal(leaf.Leaf.RawSubject, leaf.Leaf.RawIssuer) {
			t.Error("it looks as if it signed itself")
		}
		if _, err := exec.LookPath("openssl"); err != nil {
			continue
		}
		trust, cert := filepath.Join(dir, "trust.pem"), filepath.Join(dir, "leaf.pem")
		for path, raw := range map[string][]byte{trust: a.Certificate(), cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]})} {
			if err := os.WriteFile(path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", name, "-CAfile", trust, cert).CombinedOutput()
		if err != nil {
			t.Errorf("openssl: %v: %s", err, out)
		}
	}
}

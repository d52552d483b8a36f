package cli

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/daemon"
)

// certDocument is what cert prints as JSON.
type certDocument struct {
	File        string    `json:"file"`
	PEM         string    `json:"pem"`
	Names       []string  `json:"names"`       // what it may vouch for
	Fingerprint string    `json:"fingerprint"` // SHA-256 in hexadecimal digits
	NotAfter    time.Time `json:"notAfter"`
	Trust       certTrust `json:"trust"`
}

// certTrust are the lines that make programs of one kind trust it.
type certTrust struct {
	System string `json:"system"` // Debian and its relatives; then every program does that uses the system's store
	Node   string `json:"node"`   // Node.js has a store of its own
	Others string `json:"others"` // Python, Go, curl and what else OpenSSL serves, for one shell; in place of the system's store
}

func certCommand(e *Env) *cobra.Command {
	var onlyPEM bool
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "Print the edge's certificate authority and how to trust it",
		Long: `Print the certificate authority that signs the edge's certificates, and the lines that make programs trust it.

The first ` + "`tartarus up`" + ` makes it, in the data folder. It can vouch for the edge's domain and for this machine, and for nothing else.`,
		Example: "  tartarus cert\n  ssh server tartarus cert --pem > tartarus.pem",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := e.configure(nil)
			if err != nil {
				return err
			}
			doc, err := readCert(c.Config)
			switch {
			case err != nil:
				return err
			case e.JSON:
				return e.printJSON(doc)
			case onlyPEM:
				_, err = fmt.Fprint(e.Stdout, doc.PEM)
				return err
			}
			return e.showCert(doc)
		},
	}
	cmd.Flags().BoolVar(&onlyPEM, "pem", false, "print the certificate and nothing else")
	return cmd
}

// readCert reads the authority of a data folder. Where the operator brought a certificate there is none to trust.
func readCert(c daemon.Config) (certDocument, error) {
	if c.EdgeCertFile != "" {
		return certDocument{}, tartarus.Errorf(tartarus.NotFound, "the edge uses the certificate %s: clients must trust whoever issued that", c.EdgeCertFile)
	}
	doc := certDocument{File: daemon.CAFile(c.DataDir)}
	raw, err := os.ReadFile(doc.File)
	if errors.Is(err, fs.ErrNotExist) {
		return doc, tartarus.Errorf(tartarus.NotFound, "there is no certificate authority in %s yet: the first `tartarus up` makes it; --data names another data folder", c.DataDir)
	}
	if err != nil {
		return doc, fmt.Errorf("read certificate authority: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return doc, tartarus.Errorf(tartarus.Corrupt, "%s is no PEM file; remove it, and the next `tartarus up` writes it again", doc.File)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return doc, tartarus.Errorf(tartarus.Corrupt, "%s holds no certificate (%w); remove it, and the next `tartarus up` writes it again", doc.File, err)
	}
	sum := sha256.Sum256(cert.Raw)
	doc.PEM, doc.Names, doc.Fingerprint, doc.NotAfter = string(pem.EncodeToMemory(block)), cert.PermittedDNSDomains, hex.EncodeToString(sum[:]), cert.NotAfter.UTC()
	file := shellWord(doc.File)
	doc.Trust = certTrust{
		System: "sudo cp " + file + " /usr/local/share/ca-certificates/tartarus.crt && sudo update-ca-certificates",
		Node:   "export NODE_EXTRA_CA_CERTS=" + file,
		Others: "export SSL_CERT_FILE=" + file,
	}
	return doc, nil
}

func (e *Env) showCert(doc certDocument) error {
	var names []string
	for _, n := range doc.Names {
		names = append(names, n, "*."+n)
	}
	_, err := fmt.Fprintf(e.Stdout, `file         %s
vouches for  %s
SHA-256      %s
valid until  %s

trust it on Debian and its relatives, for every program that uses the system's store:

  %s

trust it in Node.js:

  %s

trust it, and nobody else, in Python, Go, curl and other programs of one shell:

  %s
`, doc.File, strings.Join(names, " "), doc.Fingerprint, doc.NotAfter.Format(time.DateOnly), doc.Trust.System, doc.Trust.Node, doc.Trust.Others)
	return err
}

// shellWord quotes s for a shell where it needs that.
func shellWord(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@%") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

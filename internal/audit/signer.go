package audit

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tartarus-sandbox/tartarus"
)

// Files of the signing key, beside the chains. The second one is there while a rotation is under way only.
const (
	keyFile     = "signing.key"
	nextKeyFile = "signing.key.next"
)

// PublicKey is a key whose signatures count.
type PublicKey struct {
	ID  string `json:"id"`  // the first 16 hex digits of the SHA-256 of the key
	Key string `json:"key"` // Ed25519, base64
}

func publicKey(k ed25519.PublicKey) PublicKey {
	sum := sha256.Sum256(k)
	return PublicKey{ID: hex.EncodeToString(sum[:8]), Key: base64.StdEncoding.EncodeToString(k)}
}

// checked reports whether the id is that of the key, and returns the key.
func (p PublicKey) checked() (ed25519.PublicKey, bool) {
	raw, err := base64.StdEncoding.DecodeString(p.Key)
	if err != nil || len(raw) != ed25519.PublicKeySize || publicKey(raw) != p {
		return nil, false
	}
	return raw, true
}

// signer holds the private key of this replica.
type signer struct {
	private ed25519.PrivateKey
	public  PublicKey
}

// loadSigner reads a key; with create it makes one where there is none.
func loadSigner(path string, create bool) (*signer, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && create {
		return newSigner(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read signing key: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, tartarus.Errorf(tartarus.Corrupt, "%s is not a key in PEM", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := key.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, tartarus.Errorf(tartarus.Corrupt, "%s is not an Ed25519 key", path)
	}
	return &signer{private, publicKey(private.Public().(ed25519.PublicKey))}, nil
}

// newSigner makes a key and writes it, whole or not at all.
func newSigner(path string) (*signer, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make signing key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("make signing key: %w", err)
	}
	if err := writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return nil, fmt.Errorf("write signing key: %w", err)
	}
	return &signer{private, publicKey(public)}, nil
}

// sign returns body, which is a JSON object whose last field is an empty signature, with the signature in it.
func (s *signer) sign(body []byte) []byte {
	body = body[:len(body)-len(signatureField)-len(`"}`)]
	return append(body, signatureField+base64.StdEncoding.EncodeToString(ed25519.Sign(s.private, body))+`"}`...)
}

const signatureField = `,"signature":"`

// signatureTail is the length of that field with a signature in it.
var signatureTail = len(signatureField) + base64.StdEncoding.EncodedLen(ed25519.SignatureSize) + len(`"}`)

// signed reports whether line was signed by the key.
func signed(line []byte, by PublicKey) bool {
	key, ok := by.checked()
	cut := len(line) - signatureTail
	if !ok || cut <= 0 || string(line[cut:cut+len(signatureField)]) != signatureField {
		return false
	}
	sig, err := base64.StdEncoding.DecodeString(string(line[cut+len(signatureField) : len(line)-2]))
	return err == nil && ed25519.Verify(key, line[:cut], sig)
}

// writeFile writes a file that only its owner reads, whole or not at all.
func writeFile(path string, body []byte) error {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".new-*") // made with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err = tmp.Write(body); err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

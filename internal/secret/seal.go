package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// Sealer encrypts values with AES-256-GCM.
type Sealer struct {
	aead cipher.AEAD
	root []byte        // other keys are derived from it
	tag  [tagSize]byte // names the key, so that a wrong one is told from damage
}

const (
	keySize = 32
	tagSize = 4
)

// NewSealer makes a sealer of a key of 32 bytes.
func NewSealer(key []byte) (*Sealer, error) {
	if len(key) != keySize {
		return nil, tartarus.Errorf(tartarus.Invalid, "a secret key has %d bytes, not %d", keySize, len(key))
	}
	root, err := hkdf.Extract(sha256.New, key, []byte("tartarus"))
	if err != nil {
		return nil, fmt.Errorf("use secret key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("use secret key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("use secret key: %w", err)
	}
	s := &Sealer{aead: aead, root: root}
	sum := sha256.Sum256(append([]byte("tartarus secret key "), key...))
	copy(s.tag[:], sum[:])
	return s, nil
}

// LoadKey reads a key file, and makes one that only its owner reads when there is none. All servers that share a store need
// the same file.
func LoadKey(file string) (*Sealer, error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if raw, err = makeKey(file); errors.Is(err, fs.ErrExist) {
			raw, err = os.ReadFile(file) // another process was first
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read secret key: %w", err)
	}
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, tartarus.Errorf(tartarus.Invalid, "%s may be read by others (mode %o); run: chmod 600 %s", file, info.Mode().Perm(), file)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(key) != keySize {
		return nil, tartarus.Errorf(tartarus.Corrupt, "%s does not hold a key of %d bytes in base64; put it back from a backup: without it no secret can be read", file, keySize)
	}
	return NewSealer(key)
}

// makeKey writes a new key, whole or not at all, and never over one that is there.
func makeKey(file string) ([]byte, error) {
	key := make([]byte, keySize)
	rand.Read(key)
	raw := []byte(base64.StdEncoding.EncodeToString(key) + "\n")
	tmp, err := os.CreateTemp(filepath.Dir(file), ".secret-*") // made with mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	if _, err = tmp.Write(raw); err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Link(tmp.Name(), file)
	}
	return raw, err
}

// binding is what a sealed value is good for.
func binding(i Info) []byte {
	return []byte(i.Tenant + "\x00" + i.ID + "\x00" + strconv.FormatInt(i.Version, 10))
}

func (s *Sealer) seal(i Info, value string) []byte {
	nonce := make([]byte, s.aead.NonceSize())
	rand.Read(nonce)
	return s.aead.Seal(append(s.tag[:], nonce...), nonce, []byte(value), binding(i))
}

func (s *Sealer) open(r Record) (string, error) {
	n := s.aead.NonceSize()
	if len(r.Sealed) < tagSize+n {
		return "", tartarus.Errorf(tartarus.Corrupt, "secret %s is cut short", r.ID)
	}
	if [tagSize]byte(r.Sealed) != s.tag {
		return "", tartarus.Errorf(tartarus.Corrupt, "secret %s was sealed under another key than this server's", r.ID)
	}
	value, err := s.aead.Open(nil, r.Sealed[tagSize:tagSize+n], r.Sealed[tagSize+n:], binding(r.Info))
	if err != nil {
		return "", tartarus.Errorf(tartarus.Corrupt, "secret %s does not open: %w", r.ID, err)
	}
	return string(value), nil
}

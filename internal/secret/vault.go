package secret

import (
	"context"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Vault is a store together with the key that opens what is in it.
type Vault struct {
	store  Store
	sealer *Sealer
}

// NewVault makes a vault.
func NewVault(s Store, k *Sealer) *Vault { return &Vault{store: s, sealer: k} }

// Create adds a secret.
func (v *Vault) Create(ctx context.Context, tenant, name, value string, metadata map[string]string) (Info, error) {
	name, err := CleanName(name)
	if err != nil {
		return Info{}, err
	}
	if err := checkValue(value); err != nil {
		return Info{}, err
	}
	if err := CheckMetadata(metadata); err != nil {
		return Info{}, err
	}
	now := time.Now().UTC()
	r := Record{Info: Info{ID: NewID(), Tenant: tenant, Name: name, Version: 1, Metadata: metadata, CreatedAt: now, UpdatedAt: now}}
	r.Sealed = v.sealer.seal(r.Info, value)
	return r.Info, v.store.CreateSecret(ctx, r)
}

// updateTries bounds the race with other writers of one secret; each lost round means that another one succeeded.
const updateTries = 8

// Update stores a new value, and new metadata unless it is nil.
func (v *Vault) Update(ctx context.Context, tenant, ref, value string, metadata map[string]string) (Info, error) {
	if err := checkValue(value); err != nil {
		return Info{}, err
	}
	if err := CheckMetadata(metadata); err != nil {
		return Info{}, err
	}
	for try := 0; ; try++ {
		r, err := v.find(ctx, tenant, ref)
		if err != nil {
			return Info{}, err
		}
		r.Version++
		r.UpdatedAt = time.Now().UTC()
		if metadata != nil {
			r.Metadata = metadata
		}
		r.Sealed = v.sealer.seal(r.Info, value)
		err = v.store.UpdateSecret(ctx, r)
		if err == nil || !tartarus.Is(err, tartarus.Conflict) || try == updateTries {
			return r.Info, err
		}
	}
}

// Info describes a secret by id or name.
func (v *Vault) Info(ctx context.Context, tenant, ref string) (Info, error) {
	r, err := v.find(ctx, tenant, ref)
	return r.Info, err
}

// List describes at most limit secrets whose names come after one.
func (v *Vault) List(ctx context.Context, tenant, after string, limit int) ([]Info, error) {
	return v.store.Secrets(ctx, tenant, after, limit)
}

// Remove forgets a secret by id or name.
func (v *Vault) Remove(ctx context.Context, tenant, ref string) error {
	r, err := v.find(ctx, tenant, ref)
	if err != nil {
		return err
	}
	return v.store.RemoveSecret(ctx, tenant, r.ID)
}

// Value opens a secret. What it returns goes into a request that leaves the host, and nowhere else.
func (v *Vault) Value(ctx context.Context, tenant, ref string) (string, error) {
	r, err := v.find(ctx, tenant, ref)
	if err != nil {
		return "", err
	}
	return v.sealer.open(r)
}

// find takes names in any case, as the API does.
func (v *Vault) find(ctx context.Context, tenant, ref string) (Record, error) {
	clean := ref
	if len(ref) < len(IDPrefix) || ref[:len(IDPrefix)] != IDPrefix {
		var err error
		if clean, err = CleanName(ref); err != nil {
			return Record{}, tartarus.Errorf(tartarus.NotFound, "there is no secret %.80q", ref)
		}
	}
	return v.store.Secret(ctx, tenant, clean)
}

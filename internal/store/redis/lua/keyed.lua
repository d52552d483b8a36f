local tenant, key = ARGV[1], ARGV[2]
local id = key ~= '' and call('GET', idem_key(tenant, key))
if not id or not current(id) then return {'absent'} end
return {'ok', call('HGETALL', job_key(id))}

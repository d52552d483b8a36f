local id = ARGV[1]
local state = call('HGET', job_key(id), 'state')
if not state then return {'absent'} end
if state ~= 'waiting' and state ~= 'leased' then return {'conflict', state} end
finish(id, 'cancelled', '', '')
return {'ok'}

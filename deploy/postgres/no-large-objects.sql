-- Takes large objects away from everybody but superusers. Run it in Roundhouse's database as a superuser; it is safe to repeat.
-- Nothing of Roundhouse uses large objects. PostgreSQL lets every role make them, and they would belong to no table: no quota, no
-- retention and no backup of one schema would see them. (`lo_import` and `lo_export` are for superusers in any case.)
DO $$
DECLARE
    part regprocedure;
BEGIN
    FOR part IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^(lo_.*|loread|lowrite)$'
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', part);
    END LOOP;
END $$;

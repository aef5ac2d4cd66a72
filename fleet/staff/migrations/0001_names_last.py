"""A user's name never changes, and no user is deleted, whoever asks: the audit log names users by their names."""

from django.db import migrations

GUARD = """
CREATE FUNCTION staff_keep_user() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'auth_user: a user is never % because the audit log names the user; deactivate the user, or make another one',
        CASE TG_OP WHEN 'UPDATE' THEN 'renamed,' ELSE 'deleted,' END USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER staff_name_stays BEFORE UPDATE OF username ON auth_user
    FOR EACH ROW WHEN (NEW.username IS DISTINCT FROM OLD.username) EXECUTE FUNCTION staff_keep_user();
CREATE TRIGGER staff_user_stays BEFORE DELETE ON auth_user FOR EACH ROW EXECUTE FUNCTION staff_keep_user();
CREATE TRIGGER staff_users_stay BEFORE TRUNCATE ON auth_user FOR EACH STATEMENT EXECUTE FUNCTION staff_keep_user();
"""
UNGUARD = """
DROP TRIGGER staff_name_stays ON auth_user;
DROP TRIGGER staff_user_stays ON auth_user;
DROP TRIGGER staff_users_stay ON auth_user;
DROP FUNCTION staff_keep_user();
"""


class Migration(migrations.Migration):
    dependencies = [("auth", "0012_alter_user_first_name_max_length")]
    operations = [migrations.RunSQL(GUARD, UNGUARD)]
